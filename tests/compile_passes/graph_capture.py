"""Dynamo's graph of a function, and the same graph after passes: for tests that look at graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from compile_passes.dynamo_graph import copy_graph_module
from compile_passes.node_queries import op_name
from compile_passes.pipeline import PASSES, Pass, run_passes
from compile_passes.rewrite_context import RewriteContext, attach_context
from nanospec.draft_vocabulary import HasVocabularyViews


def capture(function: Callable, *inputs: Any) -> tuple[fx.GraphModule, list[Any]]:
    """The one graph that Dynamo makes of the function, and the inputs that it would be called with."""
    captured: list[tuple[fx.GraphModule, list[Any]]] = []

    def keep(graph_module: fx.GraphModule, example_inputs: list[Any]) -> Callable:
        captured.append((graph_module, example_inputs))
        return graph_module.forward

    torch._dynamo.reset()
    torch.compile(function, backend=keep, fullgraph=True)(*inputs)
    assert len(captured) == 1, "one graph was expected"
    return captured[0]


def rewrite(
    function: Callable,
    *inputs: Any,
    vocabulary: HasVocabularyViews | None = None,
    head: nn.Module | None = None,
    passes: tuple[Pass, ...] = PASSES,
) -> tuple[fx.GraphModule, list[str]]:
    """The function's graph after the passes, and the names of those that changed it."""
    original, example_inputs = capture(function, *inputs)
    rewritten = copy_graph_module(original)
    names = [node.name for node in rewritten.graph.find_nodes(op="placeholder")]
    views = None if vocabulary is None else vocabulary.vocabulary_views()
    weight = None if head is None else head.weight
    attach_context(rewritten, RewriteContext(dict(zip(names, example_inputs, strict=True)), views, weight))
    return rewritten, run_passes(rewritten, passes)


def count_calls(graph_module: fx.GraphModule) -> Counter[str]:
    """How often each operation is called: by its name as a method, or by the name of a function."""
    calls = [node for node in graph_module.graph.nodes if node.op in ("call_function", "call_method")]
    return Counter(op_name(node) or node.target.__name__ for node in calls)


def widths(graph_module: fx.GraphModule, width: int) -> list[str]:
    """Names of the nodes, inputs aside, whose last dimension is `width`."""
    found = []
    for node in graph_module.graph.nodes:
        value = node.meta.get("example_value")
        if node.op != "placeholder" and isinstance(value, torch.Tensor) and value.dim() and value.shape[-1] == width:
            found.append(node.name)
    return found
