"""What `blocked_topk` means: a stable descending sort, cut after k."""

from __future__ import annotations

import torch
from torch import Tensor


def blocked_topk_reference(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(values [n, k], ids int64 [n, k]) of logits [n, V]; NaN is the largest value, equal values keep their order."""
    values, ids = torch.sort(logits, dim=1, descending=True, stable=True)
    return values[:, :k], ids[:, :k]
