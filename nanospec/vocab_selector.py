"""The policy that chooses the draft vocabulary: one small interface, and the names a user may ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from nanospec.checkpoints.draft_ids import read_id_list
from nanospec.head_shard import head_shard
from nanospec.records import DraftVocab, Observation
from nanospec.successor_prior import SuccessorPrior
from nanospec.vocab.adaptive import AdaptiveVocab, policy_below
from nanospec.vocab.full import FullVocab
from nanospec.vocab.in_context import InContextVocab
from nanospec.vocab.reduced import ReducedVocab, head_positions
from nanospec.vocab.routed import RoutedVocab, for_levels, parse_rows
from nanospec.vocab.router_added import LOOKED_AT, RouterAddedVocab
from nanospec.vocab.router_file import read_router
from nanospec.vocab.same_head import is_same_head
from nanospec.vocab.sources import IN_CONTEXT_SOURCES, CandidateSource, TargetSuggestions, TextTokens
from nanospec.vocab.static import StaticVocab
from nanospec.vocab.static_list import check_token_ids
from nanospec.vocab.with_prior import PriorVocab

CHOICES = (
    "'full', 'in-context' ('context-only' and 'extension-only' are its halves), 'static:N' (the N most frequent ids), "
    "'static:FILE', 'hybrid:N' (these N and in-context), 'hybrid:auto' (as many of them as pay for their rows), "
    "'routed:FILE' (by a trained router) or 'routed:FILE:N' (N rows per level, or N,N,..), 'hybrid:N+routed:FILE:N' or "
    "'in-context+routed:FILE:N' (a router adds N rows to every level), each also with '+prior'"
)
# NanoSpec's two sources, and each of them alone.
IN_CONTEXT: dict[str, tuple[CandidateSource, ...]] = {
    "in-context": IN_CONTEXT_SOURCES,
    "context-only": (TextTokens(),),
    "extension-only": (TargetSuggestions(),),
}
PRIOR_SUFFIX = "+prior"
ADAPTIVE = "hybrid:auto"
ADDED = "+routed:"


@runtime_checkable
class VocabSelector(Protocol):
    """What a decoding loop asks of a policy.

    name      shown in results: "full", "static-4096", "in-context"
    observes  False: `learn` does nothing, so the caller may skip the target's top-k
    """

    name: str
    observes: bool

    def reset(self, rows: Tensor | None = None) -> None:
        """Start a new request in all sequences, or in `rows`: bool [B], or integer positions [m]."""

    def learn(self, observation: Observation) -> None:
        """Learn from what a target pass said."""

    def select(self, width: int | None = None) -> DraftVocab:
        """The current draft vocabulary as views; `width` is an upper bound of `count` that the caller knows."""
        ...


def build_vocab_selector(
    spec: str | VocabSelector,
    head_weight: Tensor,
    capacity: int = 3072,
    packed: bool | None = None,
    frequent_ids: Tensor | None = None,
) -> VocabSelector:
    """The policy that `spec` names, over `head_weight` [V, D]; a policy that is already built is returned as it is.

    capacity      most ids of an in-context vocabulary, at most V
    packed        keep its rows contiguous; None: on a CPU, unless the head is sharded
    frequent_ids  [M], most frequent first, the list behind 'static:N', 'hybrid:N' and 'hybrid:auto'

    Raises ValueError for an unknown name, 'static:N' without a list of at least N ids, or a policy that keeps rows of
    another head; TypeError for a spec that is neither; what `read_id_list` raises for 'static:FILE', and what
    `read_router` and `RoutedVocab` raise for 'routed:FILE'.
    """
    if not isinstance(spec, str):
        if isinstance(spec, VocabSelector):
            _check_head(spec, head_weight)
            return spec
        raise TypeError(f"vocab must be {CHOICES}, or a VocabSelector, got {type(spec).__name__}")
    vocab_size, device = head_weight.shape[0], head_weight.device
    if spec.endswith(PRIOR_SUFFIX):
        policy = build_vocab_selector(spec.removesuffix(PRIOR_SUFFIX), head_weight, capacity, packed, frequent_ids)
        return PriorVocab(policy, SuccessorPrior(vocab_size, device=device))
    base, added, router = spec.partition(ADDED)
    if added:
        return _router_added(spec, build_vocab_selector(base, head_weight, capacity, packed, frequent_ids), router)
    kind, _, argument = spec.partition(":")
    if spec == "full":
        return FullVocab(head_weight)
    is_packed = _packs(head_weight) if packed is None else packed
    if spec in IN_CONTEXT:
        policy = InContextVocab(head_weight, capacity, packed=is_packed, sources=IN_CONTEXT[spec])
        policy.name = spec
        return policy
    if kind == "static" and argument:
        return StaticVocab(head_weight, _listed_ids(spec, vocab_size, frequent_ids))
    if spec == ADAPTIVE:
        ranked_ids = _listed_ids(spec, vocab_size, frequent_ids)
        return AdaptiveVocab(InContextVocab(head_weight, capacity, packed=is_packed), ranked_ids)
    if kind == "hybrid" and argument:
        pinned_ids = _listed_ids(spec, vocab_size, frequent_ids)
        return InContextVocab(head_weight, capacity, packed=is_packed, pinned_ids=pinned_ids)
    if kind == "routed" and argument:
        return _routed(argument, head_weight, is_packed)
    raise ValueError(f"vocab must be {CHOICES}, got {spec!r}")


def _packs(head_weight: Tensor) -> bool:
    """Whether rows are kept contiguous where nobody says: on a CPU, of a head that lies there whole."""
    return head_weight.device.type == "cpu" and head_shard(head_weight) is None


def fewest_rows(policy: VocabSelector) -> int:
    """Columns of the narrowest vocabulary that `policy` selects: a node has no more children."""
    while isinstance(policy, PriorVocab | ReducedVocab):
        policy = policy.policy
    return min(policy.num_rows) if isinstance(policy, RoutedVocab) else policy.select(None).draft_ids.shape[-1]


def _routed(argument: str, head_weight: Tensor, packed: bool) -> RoutedVocab:
    """The policy that 'routed:FILE' or 'routed:FILE:N' names."""
    path, _, rows = argument.rpartition(":")
    if not path or not rows.replace(",", "").isdecimal():
        return RoutedVocab(head_weight, *read_router(argument), packed)
    router, num_rows = read_router(path)
    return RoutedVocab(head_weight, router, for_levels(parse_rows(rows), len(num_rows)), packed)


def _router_added(spec: str, policy: VocabSelector, argument: str) -> RouterAddedVocab:
    """`policy` and what the router of 'FILE:N' adds."""
    path, _, rows = argument.rpartition(":")
    if not isinstance(policy, InContextVocab) or not path or not rows.isdecimal() or int(rows) < 1:
        raise ValueError(
            "vocab with a router that adds rows must be 'in-context+routed:FILE:N' or 'hybrid:N+routed:FILE:N', "
            f"N at least 1, got {spec!r}"
        )
    router, num_added = read_router(path)[0], int(rows)
    num_named = min(LOOKED_AT * num_added, router.vocab_size)
    return RouterAddedVocab(policy, RoutedVocab(policy.head_weight, router, num_named), num_added)


def _check_head(policy: VocabSelector, head_weight: Tensor) -> None:
    """ValueError for a policy that keeps rows of another head than the one that drafts."""
    policy = policy_below(policy)
    weight = getattr(policy, "head_weight", None)
    if weight is not None and not is_same_head(weight, head_weight):
        raise ValueError(
            f"vocab must be over the head that drafts, {tuple(head_weight.shape)}, the same tensor and no other of its "
            "shape: decoder.target.head_weight, or decoder.drafter.head.weight where the draft has a head of its own; "
            f"got {policy.name!r} over another of shape {tuple(weight.shape)}"
        )


def build_reduced_vocab(
    spec: str | VocabSelector,
    head_weight: Tensor,
    target_ids: Tensor,
    vocab_size: int,
    capacity: int = 3072,
    frequent_ids: Tensor | None = None,
) -> ReducedVocab | AdaptiveVocab | PriorVocab:
    """The policy that `spec` names for a draft whose head_weight [D, H] scores `target_ids` [D] of `vocab_size` ids.

    Lists of ids are lists of the target's; those that the draft cannot say are left out and counted. Raises as
    `build_vocab_selector`, ValueError for a list of which nothing remains or a policy over the target's head, and
    NotImplementedError for a router that adds rows.
    """
    if not isinstance(spec, str):
        if isinstance(spec, ReducedVocab | AdaptiveVocab | PriorVocab) and isinstance(policy_below(spec), ReducedVocab):
            return spec
        raise ValueError(
            f"vocab must be {CHOICES}, or a ReducedVocab, for a draft that scores {target_ids.shape[0]} of "
            f"{vocab_size} ids, got {type(spec).__name__}"
        )
    if spec.endswith(PRIOR_SUFFIX):
        plain = spec.removesuffix(PRIOR_SUFFIX)
        policy = build_reduced_vocab(plain, head_weight, target_ids, vocab_size, capacity, frequent_ids)
        return PriorVocab(policy, SuccessorPrior(vocab_size, device=head_weight.device))
    if ADDED in spec:
        raise NotImplementedError(
            f"vocab {spec!r} must be over all ids: a router adds no rows where a draft scores "
            f"{target_ids.shape[0]} of {vocab_size} ids"
        )
    kind, _, argument = spec.partition(":")
    if kind not in ("static", "hybrid") or not argument:
        return ReducedVocab(build_vocab_selector(spec, head_weight, capacity), target_ids, vocab_size)
    ids = _listed_ids(spec, vocab_size, frequent_ids).to(target_ids.device)
    positions = head_positions(target_ids, vocab_size)[ids]
    kept = positions[positions >= 0]
    if kept.numel() == 0:
        raise ValueError(f"vocab {spec!r} must hold ids that the draft can say, got {ids.shape[0]} others")
    listed = (ids.shape[0], ids.shape[0] - kept.shape[0])
    if kind == "static":
        return ReducedVocab(StaticVocab(head_weight, kept), target_ids, vocab_size, listed)
    is_packed = _packs(head_weight)
    if spec == ADAPTIVE:
        in_context = InContextVocab(head_weight, capacity, packed=is_packed)
        return AdaptiveVocab(ReducedVocab(in_context, target_ids, vocab_size), ids[positions >= 0])
    hybrid = InContextVocab(head_weight, capacity, packed=is_packed, pinned_ids=kept)
    return ReducedVocab(hybrid, target_ids, vocab_size, listed)


def _listed_ids(spec: str, vocab_size: int, frequent_ids: Tensor | None) -> Tensor:
    """The list that 'static:' or 'hybrid:' names: a file, a draft of few ids, or the first N of `frequent_ids`.

    Raises as `read_id_list`, FileNotFoundError for what is neither; for `frequent_ids` TypeError or ValueError unless
    they are distinct ids of the vocabulary in a 1-D tensor, at least N."""
    _, _, argument = spec.partition(":")
    if spec != ADAPTIVE and not argument.removeprefix("-").isdecimal():
        if not Path(argument).exists():
            raise FileNotFoundError(
                f"static list not found: {argument}: vocab must have a number of ids or a file after the colon, with "
                f"{PRIOR_SUFFIX!r} as the only suffix of a list, got {spec!r}"
            )
        return read_id_list(argument, vocab_size)
    if frequent_ids is None:
        raise ValueError(f"vocab {spec!r} needs a list of frequent ids and none came with the draft: name a file")
    if not isinstance(frequent_ids, Tensor):
        raise TypeError(f"frequent_ids must be a tensor, got {type(frequent_ids).__name__}")
    if frequent_ids.dim() != 1:
        raise ValueError(f"frequent_ids must be 1-D, got shape {tuple(frequent_ids.shape)}")
    num_ids = max(1, frequent_ids.shape[0]) if spec == ADAPTIVE else int(argument)
    if num_ids < 1:
        raise ValueError(f"vocab {spec!r} must ask for at least 1 id, got {num_ids}")
    if frequent_ids.shape[0] < num_ids:
        raise ValueError(f"vocab {spec!r} needs as many frequent ids, the list has {frequent_ids.shape[0]}")
    check_token_ids(frequent_ids[:num_ids].tolist(), vocab_size, "frequent_ids")
    return frequent_ids[:num_ids]
