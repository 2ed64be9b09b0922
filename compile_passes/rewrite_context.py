"""What passes may know beside the graph: the tensors behind its inputs, the draft vocabulary, the inputs they add."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, fx
from torch._subclasses import FakeTensor

from nanospec.draft_vocabulary import VocabularyViews

_META_KEY = "nanospec"


@dataclass
class RewriteContext:
    """Attached to the graph module that is rewritten; see `attach_context` and `require_context`.

    tensors        placeholder name -> the tensor that the graph is called with
    vocabulary     what to draft from, None: no head is restricted
    head_weight    the weight [V, D] that the caller named, None: found by structure
    static_inputs  tensors behind the placeholders that passes have added, in order; same address in every call
    before_call    run on the host before every call of the compiled graph
    """

    tensors: Mapping[str, object]
    vocabulary: VocabularyViews | None = None
    head_weight: Tensor | None = None
    static_inputs: list[Tensor] = field(default_factory=list)
    before_call: list[Callable[[], None]] = field(default_factory=list)

    def tensor_of(self, node: fx.Node) -> Tensor | None:
        """The tensor behind an input of the graph; None for anything else."""
        if node.op == "placeholder":
            tensor = self.tensors.get(node.name)
        elif node.op == "get_attr":
            module = node.graph.owning_module
            assert module is not None, "a graph is rewritten inside its module"
            tensor = dict(module.named_parameters()).get(str(node.target))
        else:
            return None
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
