"""A copy of the graph that Dynamo hands to a backend, free to gain inputs."""

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
