"""Which token ids are near: the most recently seen ones of every sequence, in fixed-size buffers on the device."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nanospec.draft_vocabulary import VocabularyViews
from nanospec.ops.vocabulary_pins import pin_ids, release_ids
from nanospec.ops.vocabulary_update import NEVER_LEAVES, vocabulary_update
from nanospec.vocab.static_list import check_token_ids

# Buffers that are the same for all sequences.
_SHARED = ("pinned_ids", "fresh_token", "fresh_seen")


class VocabChange(NamedTuple):
    """Columns of `draft_ids` that a change of n ids replaced; m = min(n, K).

    slots int64 [B, m]  the column, or K where nothing changed (a buffer with K + 1 rows takes every write)
    ids   int64 [B, m]  what it holds now; 0 where nothing changed
    """

    slots: Tensor
    ids: Tensor


class LocalityTracker(nn.Module):
    """The `capacity` (K) ids seen last by each of `batch_size` (B) sequences out of `vocab_size` (V): an exact LRU.

    `pinned_ids` int64 [P] are always in and take the first P columns. A sequence never sees another one's ids.
    Memory per sequence: 12 bytes x V and 16 bytes x K.

    Raises ValueError unless 1 <= capacity <= vocab_size, batch_size >= 1 and the pinned ids are distinct, inside the
    vocabulary and at most `capacity`; TypeError for pinned ids that are no integers.
    """

    pinned_ids: Tensor
    fresh_token: Tensor
    fresh_seen: Tensor
    slot_token: Tensor
    slot_seen: Tensor
    token_slot: Tensor
    token_seen: Tensor
    count: Tensor
    clock: Tensor
    began: Tensor

    def __init__(
        self,
        vocab_size: int,
        capacity: int,
        batch_size: int = 1,
        pinned_ids: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= capacity <= vocab_size:
            raise ValueError(f"capacity must be between 1 and vocab_size {vocab_size}, got {capacity}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.vocab_size, self.capacity, self.batch_size = vocab_size, capacity, batch_size
        pinned = _check_pinned(pinned_ids, vocab_size, capacity)
        num_pinned = self.num_pinned = pinned.shape[0]

        # A row without history: pinned ids, then unused slots, to be taken in order, which repeat the id of slot 0.
        fresh_token = torch.zeros(capacity + 1, dtype=torch.int64)
        fresh_seen = torch.arange(-capacity, 1)
        if num_pinned:
            fresh_token[:] = pinned[0]
            fresh_token[:num_pinned] = pinned
            fresh_seen[:num_pinned] = NEVER_LEAVES
        token_seen = torch.full((batch_size, vocab_size + 1), -1)
        token_seen[:, vocab_size] = NEVER_LEAVES
        buffers = {
            "pinned_ids": pinned,
            "fresh_token": fresh_token,
            "fresh_seen": fresh_seen,
            "slot_token": fresh_token.repeat(batch_size, 1),
            "slot_seen": fresh_seen.repeat(batch_size, 1),
            "token_slot": torch.full((batch_size, vocab_size + 1), -1, dtype=torch.int32),
            "token_seen": token_seen,
            "count": torch.zeros(batch_size, dtype=torch.int32),
            "clock": torch.zeros(batch_size, dtype=torch.int64),
            "began": torch.zeros(batch_size, dtype=torch.int64),
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer.to(device), persistent=False)
        self.reset()

    @property
    def draft_ids(self) -> Tensor:
        """int64 [B, K], a view that `observe` and `reset` update; columns from `count` on repeat the id of column 0."""
        return self.slot_token[:, : self.capacity]

    def observe(self, ids: Tensor) -> VocabChange:
        """See `ids` [B, n], any integer dtype, oldest first; an id outside [0, V) means "none".

        Raises TypeError for ids that are no integers, ValueError for another shape.
        """
        if ids.dtype == torch.bool or ids.is_floating_point() or ids.is_complex():
            raise TypeError(f"ids must be integers, got {ids.dtype}")
        if ids.dim() != 2 or ids.shape[0] != self.batch_size:
            raise ValueError(f"ids must be [{self.batch_size}, n], got shape {tuple(ids.shape)}")
        return VocabChange(*vocabulary_update(ids.long(), *self._held(), self.count, self.clock))

    def pin(self, ids: Tensor) -> VocabChange:
        """Ids that stay in all sequences, seen or not, until they are released or a reset: int64 [P], not pinned yet.

        Raises ValueError if there would be more pinned ids than slots. Nothing else is checked: that would wait.
        """
        if self.num_pinned + ids.shape[0] > self.capacity:
            raise ValueError(
                f"ids must be at most {self.capacity - self.num_pinned}, as {self.num_pinned} of {self.capacity} slots "
                f"are pinned, got {ids.shape[0]}"
            )
        self.num_pinned += ids.shape[0]
        return VocabChange(*pin_ids(self._in_all(ids), *self._held(), self.count, self.clock))

    def release(self, ids: Tensor) -> VocabChange:
        """Undo `pin` for ids int64 [P]: those seen since the reset stay as long as others like them, the rest leaves.

        Raises ValueError for more ids than were pinned.
        """
        num_releasable = self.num_pinned - self.pinned_ids.shape[0]
        if ids.shape[0] > num_releasable:
            raise ValueError(f"ids must be at most {num_releasable}, which were pinned, got {ids.shape[0]}")
        self.num_pinned -= ids.shape[0]
        return VocabChange(*release_ids(self._in_all(ids), self.began, *self._held(), self.count))

    def was_seen(self, ids: Tensor) -> Tensor:
        """ids int64 [B, ..] inside the vocabulary -> bool, whether each was observed since the reset."""
        return self.token_seen.gather(1, ids.flatten(1)).view_as(ids) >= self.began.view(-1, *[1] * (ids.dim() - 1))

    def newest(self, num_ids: int) -> Tensor:
        """int64 [B, min(num_ids, K)]: the ids seen last that are not pinned, oldest first; -1: none left."""
        seen = self.slot_seen[:, : self.capacity]
        age = seen.masked_fill(seen == NEVER_LEAVES, -1).topk(min(num_ids, self.capacity))
        ids = self.draft_ids.gather(1, age.indices).masked_fill(age.values < 0, -1)
        return ids.flip(1)

    def reset(self, rows: Tensor | None = None, num_kept: int = 0) -> VocabChange:
        """Forget everything but the pinned ids, in all sequences or in `rows`: bool [B], or integer positions [m].

        Ids that `pin` has pinned go, too. The `num_kept` ids seen last stay, as the oldest, and do not count as seen.

        Raises ValueError for a mask of another shape, TypeError for a dtype that is neither, NotImplementedError for
        single rows while `pin` has pinned ids in all.
        """
        chosen = self._row_mask(rows)[:, None]
        num_pinned = self.pinned_ids.shape[0]
        if rows is not None and self.num_pinned != num_pinned:
            raise NotImplementedError("rows must be None while ids are pinned, which are pinned in all sequences")
        kept = self.newest(num_kept).masked_fill(~chosen, -1)
        # The clock runs on, so token_seen of the past stays in the past.
        torch.where(chosen, self.fresh_token, self.slot_token, out=self.slot_token)
        torch.where(chosen, self.fresh_seen, self.slot_seen, out=self.slot_seen)
        self.token_slot.masked_fill_(chosen, -1)
        self.token_slot[:, self.pinned_ids] = torch.arange(num_pinned, dtype=torch.int32, device=chosen.device)
        self.count.masked_fill_(chosen[:, 0], num_pinned)
        self.num_pinned = num_pinned
        change = self.observe(kept)
        torch.where(chosen[:, 0], self.clock, self.began, out=self.began)
        return change

    def sequences(self, start: int, stop: int) -> LocalityTracker:
        """A tracker of these sequences alone, in the same memory."""
        other = copy.copy(self)
        other._buffers = {
            name: buffer if name in _SHARED or buffer is None else buffer[start:stop]
            for name, buffer in self._buffers.items()
        }
        other.batch_size = stop - start
        return other

    def copy_sequence(self, source: int, destination: int) -> None:
        """Sequence `destination` becomes what `source` is."""
        for name, buffer in self.named_buffers():
            if name not in _SHARED:
                buffer[destination] = buffer[source]

    def vocabulary_views(self) -> VocabularyViews:
        """Its buffers for the compile backend, which reads the rows from the head's weight.

        Raises ValueError for more than one sequence: a compiled graph scores one vocabulary.
        """
        if self.batch_size != 1:
            raise ValueError(f"batch_size must be 1 for a compiled graph, got {self.batch_size}")
        return VocabularyViews(self.vocab_size, self.draft_ids[0], self.count, pack=lambda weight: None)

    def _held(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.slot_token, self.slot_seen, self.token_slot, self.token_seen

    def _in_all(self, ids: Tensor) -> Tensor:
        return ids[None].expand(self.batch_size, -1)

    def _row_mask(self, rows: Tensor | None) -> Tensor:
        if rows is None:
            return torch.ones_like(self.count, dtype=torch.bool)
        if rows.is_floating_point() or rows.is_complex():
            raise TypeError(f"rows must be a bool mask or integer positions, got {rows.dtype}")
        if rows.dtype != torch.bool:
            return torch.zeros_like(self.count, dtype=torch.bool).index_fill_(0, rows.long().flatten(), True)
        if rows.shape != self.count.shape:
            raise ValueError(f"rows as a mask must be [{self.batch_size}], got shape {tuple(rows.shape)}")
        return rows


def _check_pinned(pinned_ids: Tensor | None, vocab_size: int, capacity: int) -> Tensor:
    if pinned_ids is None:
        return torch.zeros(0, dtype=torch.int64)
    if pinned_ids.dim() != 1 or pinned_ids.shape[0] > capacity:
        raise ValueError(f"pinned_ids must be 1-D with at most capacity {capacity} ids, got {tuple(pinned_ids.shape)}")
    check_token_ids(pinned_ids.tolist(), vocab_size, "pinned_ids")
    return pinned_ids.long().cpu()
