"""The whole vocabulary as draft vocabulary: what every restriction is compared with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanospec.head_shard import HeadShard, head_shard, whole_head
from nanospec.records import DraftVocab, Observation


class FullVocab(nn.Module):
    """All V ids of `head_weight` [V, D], the same for every sequence; `rows` is a view of the head, not a copy, and
    None where the head is sharded."""

    name: str = "full"
    observes: bool = False
    draft_ids: Tensor
    count: Tensor

    def __init__(self, head_weight: Tensor | HeadShard) -> None:
        super().__init__()
        vocab_size, device = head_weight.shape[0], head_weight.device
        # Plain attributes: neither saved nor moved with this module.
        self.head_weight = head_weight.detach()
        self.rows = whole_head(self.head_weight)[None] if head_shard(head_weight) is None else None
        self.register_buffer("draft_ids", torch.arange(vocab_size, device=device)[None], persistent=False)
        self.register_buffer("count", torch.tensor([vocab_size], dtype=torch.int32, device=device), persistent=False)

    def reset(self, rows: Tensor | None = None) -> None:
        """Nothing to forget."""

    def learn(self, observation: Observation) -> None:
        """Nothing to learn."""

    def columns(self, ids: Tensor) -> Tensor:
        """ids int64 [B, ..] inside the vocabulary -> the column of each: its own number."""
        return ids

    def select(self, width: int | None = None) -> DraftVocab:
        """The vocabulary, always V wide; `width` is a bound for policies whose count varies."""
        return DraftVocab(self.draft_ids, self.count, self.rows, all_active=True)
