"""A fixed list of ids as draft vocabulary, such as the most frequent ones of a corpus (FR-Spec)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanospec.draft_vocabulary import VocabularyViews
from nanospec.head_shard import HeadShard, head_shard, whole_head
from nanospec.records import DraftVocab, Observation
from nanospec.vocab.same_head import is_same_head
from nanospec.vocab.static_list import check_token_ids


class StaticVocab(nn.Module):
    """`ids` [N] of `head_weight` [V, D], the same for every sequence; their rows are gathered once, or read where
    they lie from a sharded head.

    Raises ValueError for ids that are empty, not 1-D, repeated or outside the vocabulary, TypeError for no integers.
    """

    name: str
    observes: bool = False
    column_of: Tensor
    draft_ids: Tensor
    count: Tensor

    def __init__(self, head_weight: Tensor | HeadShard, ids: Tensor) -> None:
        super().__init__()
        if ids.dim() != 1 or ids.shape[0] == 0:
            raise ValueError(f"ids must be 1-D and not empty, got shape {tuple(ids.shape)}")
        check_token_ids(ids.tolist(), head_weight.shape[0], "ids")
        device = head_weight.device
        self.head_weight = head_weight.detach()
        ids = ids.to(device, torch.int64)
        self.name = f"static-{ids.shape[0]}"
        self.rows: Tensor | None = None  # a plain attribute, like the head it comes from
        if head_shard(head_weight) is None:
            self.rows = whole_head(self.head_weight).index_select(0, ids)[None]
        column_of = torch.full((head_weight.shape[0],), -1, dtype=torch.int32, device=device)
        column_of[ids] = torch.arange(ids.shape[0], dtype=torch.int32, device=device)
        self.register_buffer("column_of", column_of, persistent=False)
        self.register_buffer("draft_ids", ids[None], persistent=False)
        self.register_buffer("count", torch.tensor([ids.shape[0]], dtype=torch.int32, device=device), persistent=False)

    def reset(self, rows: Tensor | None = None) -> None:
        """Nothing to forget."""

    def learn(self, observation: Observation) -> None:
        """Nothing to learn."""

    def columns(self, ids: Tensor) -> Tensor:
        """ids int64 [B, ..] inside the vocabulary -> the column of each, int64, -1 where the list lacks it."""
        return self.column_of[ids].long()

    def select(self, width: int | None = None) -> DraftVocab:
        """The list, always N wide; `width` is a bound for policies whose count varies."""
        return DraftVocab(self.draft_ids, self.count, self.rows, all_active=True)

    def vocabulary_views(self) -> VocabularyViews:
        """Its buffers for the compile backend."""
        return VocabularyViews(self.head_weight.shape[0], self.draft_ids[0], self.count, self._rows_of)

    def _rows_of(self, weight: Tensor) -> Tensor | None:
        """The rows [N, D] gathered here, if `weight` is the head that they come from."""
        return self.rows[0] if self.rows is not None and is_same_head(weight, self.head_weight) else None
