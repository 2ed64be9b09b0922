"""The graph that Dynamo hands to a backend: a copy that is free to gain inputs, and why it ends where it does."""

from __future__ import annotations

import copy

from torch import fx


def copy_graph_module(graph_module: fx.GraphModule) -> fx.GraphModule:
    """The same graph over the same submodules, with everything that Dynamo and AOTAutograd have noted on it.

    Dynamo walks the placeholders of its own graph again after the backend has returned, so none may be added there.
    """
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    result = graph.graph_copy(graph_module.graph, copied)
    output = graph.output(result)
    output.meta = copy.copy(graph_module.graph.output_node().meta)
    for original, node in copied.items():
        if hasattr(original, "_dynamo_source"):
            node._dynamo_source = original._dynamo_source
    twin = fx.GraphModule(graph_module, graph, class_name=type(graph_module).__name__)
    twin.meta = dict(graph_module.meta)
    for name, value in vars(graph_module).items():
        if name not in vars(twin):
            setattr(twin, name, value)
    return twin


def ends_in_graph_break(graph_module: fx.GraphModule) -> bool:
    """Whether Dynamo, or a copy of what it made, goes on behind this graph with the rest of the same function."""
    reason = getattr(graph_module, "compile_subgraph_reason", None)  # None: captured by something else
    return reason is not None and reason.graph_break
