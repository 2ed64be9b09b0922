"""No draft vocabulary: for a drafter that scores no tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanospec.records import DraftVocab, Observation


class NoVocab(nn.Module):
    """No id of `vocab_size` is active, ever; what is drafted comes from elsewhere."""

    name: str = "none"
    observes: bool = False
    draft_ids: Tensor
    count: Tensor

    def __init__(self, vocab_size: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.register_buffer("draft_ids", torch.zeros(1, 1, dtype=torch.int64, device=device), persistent=False)
        self.register_buffer("count", torch.zeros(1, dtype=torch.int32, device=device), persistent=False)
        self.vocab_size = vocab_size

    def reset(self, rows: Tensor | None = None) -> None:
        """Nothing to forget."""

    def learn(self, observation: Observation) -> None:
        """Nothing to learn."""

    def select(self, width: int | None = None) -> DraftVocab:
        """No active column; V unused ones, so that a tree of any width fits."""
        return DraftVocab(self.draft_ids.expand(1, self.vocab_size), self.count, None)
