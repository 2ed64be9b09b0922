"""The policy that chooses the draft vocabulary: one small interface, and the names a user may ask for."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from nanospec.records import DraftVocab
from nanospec.vocab.full import FullVocab
from nanospec.vocab.in_context import InContextVocab
from nanospec.vocab.static import StaticVocab
from nanospec.vocab.static_list import read_static_list

log = logging.getLogger(__name__)

CHOICES = "'full', 'in-context', 'static:N' (the N most frequent ids) or 'static:FILE'"


@runtime_checkable
class VocabSelector(Protocol):
    """What a decoding loop asks of a policy.

    name      shown in results: "full", "static-4096", "in-context"
    observes  False: `observe` does nothing, so the caller may skip the target's top-k
    """

    name: str
    observes: bool

    def reset(self, rows: Tensor | None = None) -> None:
        """Start a new request in all sequences, or in `rows`: bool [B], or integer positions [m]."""

    def observe(self, token_ids: Tensor) -> None:
        """See `token_ids` int64 [B, n], oldest first; -1 means "none"."""

    def select(self, width: int | None = None) -> DraftVocab:
        """The current draft vocabulary as views; `width` is an upper bound of `count` that the caller knows."""
        ...


def build_vocab_selector(
    spec: str | VocabSelector,
    head_weight: Tensor,
    capacity: int = 3072,
    packed: bool | None = None,
    frequent_ids: Tensor | None = None,
    vocab_size: int | None = None,
) -> VocabSelector:
    """The policy that `spec` names, over `head_weight` [V, D]; a policy that is already built is returned as it is.

    capacity      most ids of an in-context vocabulary, at most V
    packed        keep its rows contiguous; None: on a CPU
    frequent_ids  [M], most frequent first, the list behind 'static:N'
    vocab_size    ids that a list may name, where the head scores fewer of them: the others are left out, and how many
                  is logged; None: V

    Raises ValueError for an unknown name, or 'static:N' without a list of at least N ids; TypeError for a spec that is
    neither; what `read_static_list` raises for 'static:FILE'.
    """
    if not isinstance(spec, str):
        if isinstance(spec, VocabSelector):
            return spec
        raise TypeError(f"vocab must be {CHOICES}, or a VocabSelector, got {type(spec).__name__}")
    policy, _, argument = spec.partition(":")
    if spec == "full":
        return FullVocab(head_weight)
    if spec == "in-context":
        on_cpu = head_weight.device.type == "cpu"
        return InContextVocab(head_weight, capacity, packed=on_cpu if packed is None else packed)
    if policy == "static" and argument:
        num_rows = head_weight.shape[0]
        num_ids = num_rows if vocab_size is None else vocab_size
        ids = _static_ids(argument, num_ids, frequent_ids)
        return StaticVocab(head_weight, _without_unscored(ids, num_rows, num_ids, spec))
    raise ValueError(f"vocab must be {CHOICES}, got {spec!r}")


def _static_ids(argument: str, vocab_size: int, frequent_ids: Tensor | None) -> Tensor:
    if not argument.removeprefix("-").isdecimal():
        return read_static_list(Path(argument), vocab_size)
    num_ids = int(argument)
    if num_ids < 1:
        raise ValueError(f"vocab 'static:N' must ask for at least 1 id, got {num_ids}")
    if frequent_ids is None:
        raise ValueError(
            f"vocab 'static:{num_ids}' needs a list of frequent ids and none came with the draft: name a file"
        )
    if frequent_ids.shape[0] < num_ids:
        raise ValueError(f"vocab 'static:{num_ids}' needs as many frequent ids, the list has {frequent_ids.shape[0]}")
    return frequent_ids[:num_ids]


def _without_unscored(ids: Tensor, num_rows: int, vocab_size: int, spec: str) -> Tensor:
    """The ids [N] of a list less those that are ids of the target, but have no row in the head."""
    has_no_row = (ids >= num_rows) & (ids < vocab_size)
    num_left_out = int(has_no_row.sum())
    if num_left_out == ids.shape[0]:
        raise ValueError(f"vocab {spec!r} must hold an id below {num_rows}, the rows of the draft's head, got none")
    if num_left_out:
        log.info("vocab %r: %d ids that the draft does not score are left out", spec, num_left_out)
    return ids[~has_no_row]
