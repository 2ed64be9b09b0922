"""The output projection over selected rows of the head: what a drafter scores instead of the whole vocabulary."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gathered_linear(x: Tensor, weight: Tensor, draft_ids: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [B, n, D], weight [V, D], draft_ids int64 [B or 1, K], bias [V] -> logits [B, n, K]: x · weight[draft_ids]ᵀ.

    A leading dimension of 1 in `draft_ids` means the same ids for every sequence. Ids may repeat.

    Raises ValueError for shapes that do not fit, TypeError for `draft_ids` that are not int64 or a weight of another
    dtype than x. Ids outside [0, V) are the caller's mistake: checking them would read them back from the device.
    """
    if x.dim() != 3 or weight.dim() != 2 or x.shape[2] != weight.shape[1]:
        raise ValueError(f"x must be [B, n, D] and weight [V, D], got {tuple(x.shape)} and {tuple(weight.shape)}")
    if draft_ids.dim() != 2 or draft_ids.shape[0] not in (1, x.shape[0]):
        raise ValueError(f"draft_ids must be [{x.shape[0]} or 1, K], got shape {tuple(draft_ids.shape)}")
    if draft_ids.dtype != torch.int64:
        raise TypeError(f"draft_ids must be int64, got {draft_ids.dtype}")
    if x.dtype != weight.dtype:
        raise TypeError(f"weight must have the dtype of x, {x.dtype}, got {weight.dtype}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{weight.shape[0]}], got shape {tuple(bias.shape)}")
    rows = weight.index_select(0, draft_ids.flatten()).unflatten(0, draft_ids.shape)  # [B or 1, K, D]
    return rows_linear(x, rows, None if bias is None else bias[draft_ids])


def rows_linear(x: Tensor, rows: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [B, n, D], rows [B or 1, K, D], bias [B or 1, K] -> [B, n, K]; one dense product where the rows are shared."""
    if rows.shape[0] == 1:
        # Two-dimensional and contiguous: on strided 3-D input torch would copy the rows into a batched product.
        logits = F.linear(x.reshape(-1, x.shape[-1]), rows[0], None if bias is None else bias[0])
        return logits.view(*x.shape[:-1], rows.shape[1])
    logits = x @ rows.mT
    return logits if bias is None else logits + bias[:, None]
