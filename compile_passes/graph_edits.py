"""The few ways in which passes change a graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensor

from compile_passes.node_queries import example_value

_COPIED_META = ("stack_trace", "nn_module_stack", "source_fn_stack")


def insert_call(before: fx.Node, function: Callable, args: tuple) -> fx.Node:
    """A call of `function` in front of `before`; it says that it comes from the same line of the user's code."""
    graph = before.graph
    with graph.inserting_before(before):
        node = graph.call_function(function, args)
    return _describe(node, before)


def insert_like(original: fx.Node, replacements: dict[fx.Node, fx.Node], args: tuple | None = None) -> fx.Node:
    """The same call as `original`, in front of it, with some of its operands replaced, or with other `args`."""
    graph = original.graph
    with graph.inserting_before(original):
        node = graph.node_copy(original, lambda operand: replacements.get(operand, operand))
    if args is not None:
        node.args = args
    return _describe(node, original)


def replace_node(old: fx.Node, new: fx.Node) -> None:
    """`new` takes over all users of `old`, which leaves the graph."""
    old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    old.graph.erase_node(old)


def erase_orphans(graph: fx.Graph, had_users: Iterable[str]) -> None:
    """Remove calls that lost their last user, and what that leaves behind; `had_users` names those that had one before.

    Never all dead code: Dynamo's graph is not functional, and a call without users may be there for what it writes.
    """
    names = frozenset(had_users)
    for node in reversed(list(graph.nodes)):
        if node.name in names and not node.users and node.op in ("call_function", "call_method"):
            graph.erase_node(node)


def _describe(node: fx.Node, origin: fx.Node) -> fx.Node:
    node.meta = {key: origin.meta[key] for key in _COPIED_META if key in origin.meta}
    node.meta["example_value"] = _run_on_examples(node)
    return node


def _run_on_examples(node: fx.Node) -> object:
    """What the node yields for the example values of its operands."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), example_value)
    target: Any = node.target
    with torch.no_grad(), _fake_mode_of(args):
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)


def _fake_mode_of(args: tuple) -> contextlib.AbstractContextManager:
    for value in torch.utils._pytree.tree_leaves(args):
        if isinstance(value, FakeTensor) and isinstance(value, Tensor):
            return value.fake_mode
    return contextlib.nullcontext()
