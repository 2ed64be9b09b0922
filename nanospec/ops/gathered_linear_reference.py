"""What `gathered_linear` means: pick the rows, multiply, mask what is unused, one sequence at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def gathered_linear_reference(
    x: Tensor,
    weight: Tensor,
    draft_ids: Tensor,
    bias: Tensor | None = None,
    count: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """x [B, n, D], weight [V, D], draft_ids int64 [B or 1, K], bias [V], count int32 [B or 1], rows [B or 1, K, D] ->
    logits [B, n, K], -inf from `count` on."""
    batch_size, num_ids = x.shape[0], draft_ids.shape[1]
    counts = [num_ids] * batch_size if count is None else count.expand(batch_size).tolist()
    logits = []
    for sequence in range(batch_size):
        ids = draft_ids.expand(batch_size, -1)[sequence]
        picked = weight.index_select(0, ids) if rows is None else rows.expand(batch_size, -1, -1)[sequence]
        scores = x[sequence] @ picked.T  # [n, K]
        if bias is not None:
            scores = scores + bias.index_select(0, ids)
        logits.append(scores.masked_fill(torch.arange(num_ids, device=x.device) >= counts[sequence], float("-inf")))
    return torch.stack(logits)
