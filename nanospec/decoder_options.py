"""What the arguments of a `SpeculativeDecoder` mean, checked before anything is built."""

from __future__ import annotations

from collections.abc import Iterable
from inspect import signature
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nanospec.drafters.drafter import Drafter, FixedShapeDrafter, HasHead
from nanospec.drafters.prompt_lookup import PromptLookupDrafter
from nanospec.keyword_names import check_names
from nanospec.prefix_cache import PrefixCache
from nanospec.static_tree import StaticTree
from nanospec.target import Target
from nanospec.target_families import family_of
from nanospec.tree_shape import TreeShape
from nanospec.vocab.adaptive import AdaptiveVocab
from nanospec.vocab.full import FullVocab
from nanospec.vocab.in_context import InContextVocab
from nanospec.vocab.none import NoVocab
from nanospec.vocab.reduced import ReducedVocab
from nanospec.vocab.routed import RoutedVocab
from nanospec.vocab.router_added import RouterAddedVocab
from nanospec.vocab.static import StaticVocab
from nanospec.vocab.with_prior import PriorVocab
from nanospec.vocab_selector import VocabSelector, build_reduced_vocab, build_vocab_selector

TreeArgument = TreeShape | StaticTree | tuple[int, int, int] | Literal["auto"] | None

OPENING_OPTIONS = ("dtype", "device", "feature_layers", "lookup")  # of `from_pretrained` alone
OUR_VOCABULARIES = (
    AdaptiveVocab,
    FullVocab,
    InContextVocab,
    NoVocab,
    PriorVocab,
    ReducedVocab,
    RoutedVocab,
    RouterAddedVocab,
    StaticVocab,
)


def check_options(decoder_class: type, options: Iterable[str]) -> None:
    """TypeError for the name of an option that neither the constructor (after target and drafter) nor `from_pretrained`
    takes. A constructor that takes any name is not asked."""
    parameters = signature(decoder_class).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        constructor = [parameter.name for parameter in parameters][2:]
        check_names("options", options, (*constructor, *OPENING_OPTIONS))


def vocab_of_draft(
    vocab: str | VocabSelector, target: Target, drafter: Drafter, capacity: int, frequent_ids: Tensor | None
) -> VocabSelector:
    """The policy over the head that drafts: the target's, or the drafter's own with its own ids.

    Raises as `build_vocab_selector`.
    """
    if isinstance(drafter, PromptLookupDrafter):  # scores nothing; what is asked for must be right all the same
        build_vocab_selector(vocab, target.head_weight, capacity, False, frequent_ids)
        return NoVocab(target.vocab_size, target.device)
    if not isinstance(drafter, HasHead):
        return build_vocab_selector(vocab, target.head_weight, capacity, frequent_ids=frequent_ids)
    weight, ids = drafter.head.weight, drafter.target_ids
    capacity = min(capacity, weight.shape[0])
    if ids is None:
        return build_vocab_selector(vocab, weight, capacity, frequent_ids=frequent_ids)
    return build_reduced_vocab(vocab, weight, ids, target.vocab_size, capacity, frequent_ids)


def resolve_cuda_graph(cuda_graph: bool | None, target: Target, drafter: Drafter, vocab: VocabSelector) -> bool:
    """Whether steps are captured. Raises TypeError for what is no bool and for a drafter whose passes have no fixed
    shape, ValueError off CUDA and for experts that wait for the device, NotImplementedError for a tensor-parallel
    target, whose steps are not captured."""
    if cuda_graph is not None and not isinstance(cuda_graph, bool):
        raise TypeError(f"cuda_graph must be True, False or None, got {cuda_graph!r}")
    if target.ranks.size > 1:
        if cuda_graph:
            raise NotImplementedError("cuda_graph must be False or None with a tensor-parallel target, got True")
        return False
    on_cuda, is_fixed = target.device.type == "cuda", isinstance(drafter, FixedShapeDrafter)
    if cuda_graph is None:
        return on_cuda and is_fixed and isinstance(vocab, OUR_VOCABULARIES) and experts_can_be_captured(target)
    if cuda_graph and not on_cuda:
        raise ValueError(f"cuda_graph=True needs a target on a CUDA device, got {target.device}")
    if cuda_graph and not is_fixed:
        raise TypeError(f"cuda_graph=True needs a drafter with passes of fixed shape, got {type(drafter).__name__}")
    if cuda_graph and not experts_can_be_captured(target):
        raise ValueError(
            "cuda_graph=True needs experts_implementation batched_mm, or grouped_mm in bfloat16 on compute capability "
            f"8 and later, got {target.config._experts_implementation} in {target.dtype}"
        )
    return cuda_graph


def experts_can_be_captured(target: Target) -> bool:
    """Whether the target's pass leaves the host alone: some ways to compute experts read their loads back."""
    if not family_of(target.model).has_experts or target.config._experts_implementation == "batched_mm":
        return True
    if target.config._experts_implementation != "grouped_mm" or target.dtype != torch.bfloat16:
        return False
    return torch.cuda.get_device_capability(target.device) >= (8, 0)


def checked_temperature(draft_temperature: float | None) -> float | None:
    """Raises TypeError for what is no number, ValueError unless it is finite and above 0."""
    if draft_temperature is None:
        return None
    if isinstance(draft_temperature, bool) or not isinstance(draft_temperature, int | float):
        raise TypeError(f"draft_temperature must be a number or None, got {draft_temperature!r}")
    if not 0 < draft_temperature < float("inf"):
        raise ValueError(f"draft_temperature must be above 0 and finite, got {draft_temperature}")
    return float(draft_temperature)


def checked_prefix(prefix_cache: PrefixCache | None, target: Target) -> PrefixCache | None:
    """Raises TypeError for what is none, NotImplementedError with a tensor-parallel target."""
    if prefix_cache is None:
        return None
    if not isinstance(prefix_cache, PrefixCache):
        raise TypeError(f"prefix_cache must be a PrefixCache or None, got {type(prefix_cache).__name__}")
    if target.ranks.size > 1:
        raise NotImplementedError("prefix_cache must be None with a tensor-parallel target, got a PrefixCache")
    return prefix_cache


def as_tree_shape(tree: TreeArgument) -> TreeShape:
    if isinstance(tree, StaticTree):
        return tree.shape
    if not isinstance(tree, tuple | list) or len(tree) != 3:
        raise ValueError(f"tree must be 'auto', None or (depth, branching, num_nodes), got {tree!r}")
    return TreeShape(*tree).validated()


def eos_ids_of(target: Target, tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    """End-of-sequence ids of the generation config, else of the model config, else of the tokenizer."""
    sources = (getattr(target.model, "generation_config", None), target.config, tokenizer)
    for source in sources:
        ids = getattr(source, "eos_token_id", None)
        if ids is not None:
            return frozenset(ids if isinstance(ids, list | tuple) else [ids])
    return frozenset()
