"""What `smallest_id_topk` means: columns in the order of their ids, a stable descending sort, cut after k."""

from __future__ import annotations

from torch import Tensor


def smallest_id_topk_reference(values: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """values [.., K], ids int64 [K] or broadcastable to them -> (values [.., k], ids int64 [.., k])."""
    ids = ids.expand_as(values)
    by_id = ids.argsort(dim=-1, stable=True)
    best = values.gather(-1, by_id).sort(dim=-1, descending=True, stable=True)
    return best.values[..., :k], ids.gather(-1, by_id).gather(-1, best.indices[..., :k])
