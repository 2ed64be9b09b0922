"""What `gathered_linear` means: pick the rows, multiply, one sequence at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def gathered_linear_reference(x: Tensor, weight: Tensor, draft_ids: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [B, n, D], weight [V, D], draft_ids int64 [B or 1, K], bias [V] -> logits [B, n, K]."""
    logits = []
    for hidden, ids in zip(x, draft_ids.expand(x.shape[0], -1), strict=True):
        picked = hidden @ weight.index_select(0, ids).T  # [n, K]
        logits.append(picked if bias is None else picked + bias.index_select(0, ids))
    return torch.stack(logits)
