"""What passes may know beside the graph: the tensors behind its inputs, the draft vocabulary, the inputs they add."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, fx
from torch._subclasses import FakeTensor

from nanospec.draft_vocabulary import VocabularyViews

_META_KEY = "nanospec"


class PackedInput(NamedTuple):
    """Rows that `pack` gives for the weight behind the placeholder `weight`."""

    weight: str
    pack: Callable[[Tensor], Tensor | None]


@dataclass
class RewriteContext:
    """Attached to the graph module that is rewritten; see `attach_context` and `require_context`.

    tensors        placeholder name -> the tensor that the graph is called with
    vocabulary     what to draft from, None: no head is restricted
    head_weight    the weight [V, D] that the caller named, None: found by structure
    static_inputs  tensors behind the placeholders that passes have added, in order; same address in every call
    packed         position in `static_inputs` -> where packed rows come from, looked up anew in every call: one graph
                   serves every weight that passes Dynamo's guards, and weights may be written between calls
    """

    tensors: Mapping[str, object]
    vocabulary: VocabularyViews | None = None
    head_weight: Tensor | None = None
    static_inputs: list[Tensor] = field(default_factory=list)
    packed: dict[int, PackedInput] = field(default_factory=dict)

    def tensor_of(self, node: fx.Node) -> Tensor | None:
        """The tensor behind an input of the graph; None for anything else."""
        tensor = self.tensors.get(node.name) if node.op == "placeholder" else None
        return tensor if isinstance(tensor, Tensor) else None

    def static_input(self, graph: fx.Graph, tensor: Tensor, name: str) -> fx.Node:
        """A placeholder for `tensor`, added behind all others; one for all views that are the same.

        A placeholder, not a buffer: AOTAutograd refuses parameters and buffers that Dynamo does not know. The mark
        makes CUDA graphs read it in place instead of copying it at every replay.
        """
        placeholders = graph.find_nodes(op="placeholder")
        num_original = len(placeholders) - len(self.static_inputs)
        for node, known in zip(placeholders[num_original:], self.static_inputs, strict=True):
            if _same_memory(known, tensor):
                return node
        with graph.inserting_after(placeholders[-1]):
            node = graph.placeholder(f"nanospec_{name}_{len(self.static_inputs)}")
        node._dynamo_source = None  # AOTAutograd asks for it; None: nothing is guarded
        node.meta["tensor_dict"] = {"_dynamo_static_input_type": "guarded"}
        node.meta["example_value"] = _as_example(tensor, placeholders)
        self.static_inputs.append(tensor)
        return node

    def packed_input(self, weight: fx.Node, pack: Callable[[Tensor], Tensor | None]) -> fx.Node | None:
        """A placeholder for the packed rows of the weight behind `weight`; None where there are none."""
        tensor = self.tensor_of(weight)
        rows = None if tensor is None else pack(tensor)
        if rows is None:
            return None
        num_known = len(self.static_inputs)
        node = self.static_input(weight.graph, rows, "rows")
        if len(self.static_inputs) > num_known:
            self.packed[num_known] = PackedInput(weight.name, pack)
        return node


def attach_context(graph_module: fx.GraphModule, context: RewriteContext) -> None:
    graph_module.meta[_META_KEY] = context


def require_context(graph_module: fx.GraphModule) -> RewriteContext:
    context = graph_module.meta.get(_META_KEY)
    assert isinstance(context, RewriteContext), "attach_context must come before the passes"
    return context


def _same_memory(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors read the same numbers from the same place."""
    layouts = [(x.data_ptr(), x.dtype, x.shape, x.stride(), x.device) for x in (first, second)]
    return layouts[0] == layouts[1]


def _as_example(tensor: Tensor, placeholders: list[fx.Node]) -> Tensor:
    """The tensor in the fake mode of the graph's other inputs; itself where they are real."""
    for node in placeholders:
        value = node.meta.get("example_value")
        if isinstance(value, FakeTensor):
            return value.fake_mode.from_tensor(tensor, static_shapes=True)
    return tensor
