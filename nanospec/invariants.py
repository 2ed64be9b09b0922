"""Checks of state that must hold between steps, made when the environment asks for them: NANOSPEC_CHECKS=1.

They read buffers back from the device after every step, so they are for debugging and tests.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch

from nanospec.head_shard import whole_head
from nanospec.locality_tracker import LocalityTracker
from nanospec.ops.vocabulary_update import NEVER_LEAVES
from nanospec.vocab.adaptive import AdaptiveVocab
from nanospec.vocab.in_context import InContextVocab
from nanospec.vocab.reduced import ReducedVocab
from nanospec.vocab.router_added import RouterAddedVocab
from nanospec.vocab.with_prior import PriorVocab
from nanospec.vocab_selector import VocabSelector

VARIABLE = "NANOSPEC_CHECKS"


class StateError(RuntimeError):
    """The state of a draft vocabulary contradicts itself: the output is still the target's, but drafts go wrong."""


def checks_enabled() -> bool:
    return os.environ.get(VARIABLE, "") not in ("", "0")


def check_vocabulary(vocab: VocabSelector) -> None:
    """Raises StateError naming the first thing that does not hold, and the sequence and id where."""
    for problem in _problems(vocab):
        raise StateError(f"draft vocabulary {vocab.name!r}: {problem}")


def _problems(vocab: VocabSelector) -> Iterator[str]:
    if isinstance(vocab, PriorVocab):
        if not vocab.prior.strength.isfinite().all():
            yield "strengths of the prior must be finite"
        yield from _problems(vocab.policy)
    elif isinstance(vocab, AdaptiveVocab | RouterAddedVocab):
        yield from _problems(vocab.policy)
    elif isinstance(vocab, ReducedVocab):
        chosen = vocab.policy.select(None).draft_ids
        if not torch.equal(vocab.draft_ids, vocab.target_ids[chosen]):
            yield "ids must be those of the head's rows"
        yield from _problems(vocab.policy)
    elif isinstance(vocab, InContextVocab):
        yield from _tracker_problems(vocab.tracker)
        yield from _row_problems(vocab)


def _tracker_problems(tracker: LocalityTracker) -> Iterator[str]:
    num_pinned = tracker.pinned_ids.shape[0]
    for sequence in range(tracker.batch_size):
        count = int(tracker.count[sequence])
        if not num_pinned <= count <= tracker.capacity:
            yield f"count must be between {num_pinned} and {tracker.capacity} in sequence {sequence}, got {count}"
            return
        ids, slots = tracker.slot_token[sequence, :count], tracker.token_slot[sequence, : tracker.vocab_size]
        if ((ids < 0) | (ids >= tracker.vocab_size)).any():
            yield f"ids must lie in [0, {tracker.vocab_size}) in sequence {sequence}, got {ids.min()} to {ids.max()}"
            return
        if not torch.equal(ids[:num_pinned], tracker.pinned_ids):
            yield f"the first {num_pinned} slots must hold the pinned ids in sequence {sequence}"
        wrong = slots[ids] != torch.arange(count, device=ids.device)
        if wrong.any():
            yield f"id {int(ids[wrong][0])} must know its slot in sequence {sequence}: it is in two, or in none"
        if int((slots >= 0).sum()) != count:
            yield f"{count} ids must have a slot in sequence {sequence}, got {int((slots >= 0).sum())}"
        seen = tracker.slot_seen[sequence, num_pinned:count]
        num_held = num_pinned + int((seen == NEVER_LEAVES).sum())
        if num_held != tracker.num_pinned:
            yield f"{tracker.num_pinned} ids must be pinned in sequence {sequence}, got {num_held}"
        if ((seen > tracker.clock[sequence]) & (seen < NEVER_LEAVES)).any():
            yield f"no id may be seen later than now, {int(tracker.clock[sequence])}, in sequence {sequence}"


def _row_problems(vocab: InContextVocab) -> Iterator[str]:
    if vocab.rows is None:
        return
    for sequence, count in enumerate(vocab.tracker.count.tolist()):
        ids = vocab.tracker.draft_ids[sequence, :count]
        differs = (vocab.rows[sequence, :count] != whole_head(vocab.head_weight)[ids]).any(-1)
        if differs.any():
            yield f"the row of id {int(ids[differs][0])} must be the head's in sequence {sequence}"
