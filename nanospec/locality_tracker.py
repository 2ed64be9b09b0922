"""Which token ids are near: the most recently seen ones of every sequence, in fixed-size buffers on the device."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nanospec.draft_vocabulary import VocabularyViews
from nanospec.ops.vocabulary_update import NEVER_LEAVES, vocabulary_update
from nanospec.vocab.static_list import check_token_ids

# Buffers that are the same for all sequences.
_SHARED = ("pinned_ids", "fresh_token", "fresh_seen")


class VocabChange(NamedTuple):
    """Columns of `draft_ids` that an observation replaced; m = min(n, K).

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
        num_pinned = pinned.shape[0]

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
        change = vocabulary_update(
            ids.long(), self.slot_token, self.slot_seen, self.token_slot, self.token_seen, self.count, self.clock
        )
        return VocabChange(*change)

    def reset(self, rows: Tensor | None = None) -> None:
        """Forget everything but the pinned ids, in all sequences or in `rows`: bool [B], or integer positions [m].

        Raises ValueError for a mask of another shape, TypeError for a dtype that is neither.
        """
        chosen = self._row_mask(rows)[:, None]
        num_pinned = self.pinned_ids.shape[0]
        # The clock runs on, so token_seen of the past stays in the past.
        torch.where(chosen, self.fresh_token, self.slot_token, out=self.slot_token)
        torch.where(chosen, self.fresh_seen, self.slot_seen, out=self.slot_seen)
        self.token_slot.masked_fill_(chosen, -1)
        self.token_slot[:, self.pinned_ids] = torch.arange(num_pinned, dtype=torch.int32, device=chosen.device)
        self.count.masked_fill_(chosen[:, 0], num_pinned)

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
