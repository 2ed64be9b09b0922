"""The ids that SGLang's draft scores: as many as its token map holds at all times, in buffers that its graphs read."""

from __future__ import annotations

import torch
from torch import Tensor

from nanospec.locality_tracker import LocalityTracker, VocabChange
from nanospec.vocab.static_list import check_token_ids


class HotIds:
    """`hot_token_id` [K] and the head rows [K, D] of these ids of `full_head` [V, D], updated in place.

    first_ids   int64 [K], distinct, most frequent first: what is scored until the context says otherwise
    num_pinned  so many of them stay for good; the rest are the first to go, rarest first

    All K ids are distinct at all times. SGLang's sampling over a tree depends on it: of two siblings with the same
    token the second would count its probability again.

    Raises ValueError for ids that repeat or lie outside the vocabulary and for a num_pinned outside [0, K).
    """

    def __init__(self, full_head: Tensor, first_ids: Tensor, num_pinned: int) -> None:
        vocab_size, num_ids = full_head.shape[0], first_ids.shape[0]
        if not 0 <= num_pinned < num_ids:
            raise ValueError(f"num_pinned must be at least 0 and below the {num_ids} ids of the map, got {num_pinned}")
        self.full_head, self.num_ids, self.num_pinned = full_head.detach(), num_ids, num_pinned
        check_token_ids(first_ids.tolist(), vocab_size, "token map")
        pinned, others = first_ids[:num_pinned], first_ids[num_pinned:].to(full_head.device)
        self.tracker = LocalityTracker(vocab_size, num_ids, pinned_ids=pinned, device=full_head.device)
        # One place more than K: it takes the writes of columns that do not change.
        self._ids = torch.zeros(num_ids + 1, dtype=torch.int64, device=full_head.device)
        self._rows = self.full_head.new_zeros(num_ids + 1, full_head.shape[1])
        self.tracker.observe(others.flip(0)[None])
        self.hot_token_id.copy_(self.tracker.draft_ids[0])
        self.rows.copy_(self.full_head[self.hot_token_id])

    @property
    def hot_token_id(self) -> Tensor:
        """int64 [K]: the id of each column; the address stays."""
        return self._ids[: self.num_ids]

    @property
    def rows(self) -> Tensor:
        """[K, D]: the head's rows of these ids, contiguous; the address stays."""
        return self._rows[: self.num_ids]

    @torch.no_grad()
    def observe(self, ids: Tensor) -> None:
        """See ids, integers of any shape, oldest first; those outside the vocabulary are none. Nothing waits for the
        device."""
        self._follow(self.tracker.observe(ids.reshape(1, -1)))

    def ids_of(self, columns: Tensor) -> Tensor:
        """Columns as of now, integers of any shape -> their ids."""
        return self.hot_token_id[columns.long()]

    @torch.no_grad()
    def columns_of(self, ids: Tensor) -> Tensor:
        """Ids of any shape -> columns, after they were made the ones seen last: none can be missing.

        Raises ValueError for more ids than may come and go.
        """
        if ids.numel() > self.num_ids - self.num_pinned:
            raise ValueError(
                f"the token map must hold at least {ids.numel() + self.num_pinned} ids, {self.num_pinned} pinned ones "
                f"and what {ids.shape[0]} requests propose, got {self.num_ids}"
            )
        self.observe(ids)
        return self.tracker.token_slot[0].gather(0, ids.flatten().long()).view_as(ids).long()

    def _follow(self, change: VocabChange) -> None:
        slots, ids = change.slots[0], change.ids[0]
        self._ids.index_copy_(0, slots, ids)
        self._rows.index_copy_(0, slots, self.full_head.index_select(0, ids))
