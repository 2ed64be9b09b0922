"""The backend: rewrite Dynamo's graph, let another backend compile it, call that with the vocabulary's tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from compile_passes.backend_options import BackendOptions, read_options
from compile_passes.dynamo_graph import copy_graph_module
from compile_passes.gather_output_head import gather_output_head
from compile_passes.overlooked_head import find_overlooked_head
from compile_passes.pipeline import run_passes
from compile_passes.rewrite_context import RewriteContext, attach_context

CompiledGraph = Callable[..., Any]


def nanospec(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> CompiledGraph:
    """torch.compile(model, backend="nanospec", options={...}).

    vocabulary  what the output head may score: a DraftVocabulary, a LocalityTracker, a decoder's vocabulary; its
                tensors are written in place and never rebound, so no update recompiles anything
    head        the module whose weight [V, D] is the output head; default: found by structure
    inner       "inductor", "aot_eager" or "eager": what compiles the rewritten graph
    cudagraphs  capture CUDA graphs (Inductor's triton.cudagraphs)
    and every option of Inductor. Without a vocabulary, warns and rewrites only what needs none. With one, warns of a
    graph with an output head, as far as `find_overlooked_head` can tell, and none that is restricted: above all one of
    another vocab_size. A graph without such a head is nothing to warn of, as models may be broken into several.

    Raises TypeError or ValueError for options that do not fit; Dynamo wraps them in BackendCompilerFailed.
    """
    chosen = read_options(options, mode, example_inputs)
    if chosen.vocabulary is None:
        warnings.warn("backend 'nanospec' got no vocabulary: no output head is restricted", stacklevel=2)
    rewritten = copy_graph_module(graph_module)
    names = [node.name for node in rewritten.graph.find_nodes(op="placeholder")]
    tensors = dict(zip(names, example_inputs, strict=True))
    context = RewriteContext(tensors, chosen.vocabulary, chosen.head_weight)
    attach_context(rewritten, context)
    changed = run_passes(rewritten)
    if gather_output_head.__name__ not in changed:
        _warn_of_overlooked_head(rewritten, context)
    if not changed:
        return _compile_inner(graph_module, example_inputs, chosen)
    compiled = _compile_inner(rewritten, [*example_inputs, *_as_compile_inputs(context.static_inputs)], chosen)
    return _with_static_inputs(compiled, context, names)


def _warn_of_overlooked_head(graph_module: fx.GraphModule, context: RewriteContext) -> None:
    head = find_overlooked_head(graph_module, context)
    if head is not None and context.vocabulary is not None:
        warnings.warn(
            "backend 'nanospec' has restricted no output head: the vocabulary has vocab_size "
            f"{context.vocabulary.vocab_size}, the graph scores {head.num_rows} ids with {head.weight}; "
            'TORCH_LOGS="+compile_passes" shows why',
            stacklevel=3,
        )


def _as_compile_inputs(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Fake tensors of fixed shape: AOTAutograd gives symbolic sizes to real ones that Dynamo has not seen."""
    tracing = torch._guards.TracingContext.try_get()
    if tracing is None or tracing.fake_mode is None:
        return list(tensors)
    return [tracing.fake_mode.from_tensor(tensor, static_shapes=True) for tensor in tensors]


def _compile_inner(graph_module: fx.GraphModule, inputs: Sequence[Any], chosen: BackendOptions) -> CompiledGraph:
    if chosen.inner == "eager":
        return graph_module.forward
    if chosen.inner == "aot_eager":
        from torch._dynamo.backends.debugging import aot_eager

        return aot_eager(graph_module, list(inputs))
    from torch._inductor.compile_fx import compile_fx

    compiled: Any = compile_fx(graph_module, inputs, config_patches=chosen.inductor or None)
    return compiled


def _with_static_inputs(compiled: CompiledGraph, context: RewriteContext, names: Sequence[str]) -> CompiledGraph:
    """`compiled` as Dynamo calls it: without the inputs that the passes have added."""
    packed = [(position, names.index(weight), pack) for position, (weight, pack) in context.packed.items()]
    static_inputs = tuple(context.static_inputs)
    head_weight = context.head_weight
    named = [position for position, name in enumerate(names) if context.tensors[name] is head_weight]
    assert context.vocabulary is not None or not packed, "only a vocabulary packs rows"
    draft_ids = None if context.vocabulary is None else context.vocabulary.draft_ids

    def call_compiled(*args: Any) -> Any:
        if head_weight is not None and named and args[named[0]] is not head_weight:
            raise RuntimeError(
                "head must keep the weight that was compiled, got another one: after replacing it, or to run another "
                "model of this class, call torch._dynamo.reset() and compile anew"
            )
        inputs = list(static_inputs)
        for position, weight_position, pack in packed:
            weight = args[weight_position]
            rows = pack(weight)
            inputs[position] = weight.detach().index_select(0, draft_ids) if rows is None else rows
        return compiled(*args, *inputs)

    return call_compiled


def _reset() -> None:
    """What `torch._dynamo.reset()` asks of a backend: forget recorded CUDA graphs."""
    if torch.cuda.is_available():
        from torch._inductor.cudagraph_trees import reset_cudagraph_trees

        reset_cudagraph_trees()


nanospec.reset = _reset  # type: ignore[attr-defined]
