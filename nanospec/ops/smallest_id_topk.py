"""Top-k over compact logits that breaks ties as the full vocabulary would: the smallest id first, at every rank."""

from __future__ import annotations

import torch
from torch import Tensor

from nanospec.ops.smallest_id_topk_reference import smallest_id_topk_reference

MAX_ID = 2**31 - 1
# Integers of the same width: read as such, the bits of floats of one sign are in the order of their magnitudes.
_BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
_INFINITY_BITS = {torch.float32: 0x7F800000, torch.float16: 0x7C00, torch.bfloat16: 0x7F80}


def smallest_id_topk(values: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values, descending, equal ones by ascending id: (values [.., k], ids int64 [.., k]).

    values floating point [.., K]
    ids    int64 [K], or broadcastable to values; 0 <= id < 2**31, distinct but for padding, whose value is -inf

    NaN is the largest value, all NaNs are equal, and -0.0 equals 0.0. Differentiable with respect to values.
    float64 leaves no room for an id in an integer key and is sorted, as in the reference; the rest is one torch.topk.

    Example: values [1, 3, 3], ids [5, 9, 2], k = 2 give values [3, 3], ids [2, 9].

    Raises TypeError unless values are float16, bfloat16, float32 or float64 and ids int64, ValueError unless ids
    broadcast to values and 1 <= k <= K.
    """
    if values.dtype not in _BITS and values.dtype != torch.float64:
        raise TypeError(f"values must be float16, bfloat16, float32 or float64, got {values.dtype}")
    if ids.dtype != torch.int64:
        raise TypeError(f"ids must be int64, got {ids.dtype}")
    if values.dim() == 0 or not _broadcasts(ids, values):
        raise ValueError(f"ids must broadcast to values [.., K], got {tuple(ids.shape)} and {tuple(values.shape)}")
    if not 1 <= k <= values.shape[-1]:
        raise ValueError(f"k must be between 1 and the number of columns {values.shape[-1]}, got {k}")
    if values.dtype == torch.float64:
        return smallest_id_topk_reference(values, ids, k)
    pos = _keys(values.detach(), ids).topk(k).indices
    return values.gather(-1, pos), ids.expand_as(values).gather(-1, pos)


def _broadcasts(ids: Tensor, values: Tensor) -> bool:
    """Whether ids has one column for each of values and leading dimensions that expand to theirs."""
    if not 1 <= ids.dim() <= values.dim() or ids.shape[-1] != values.shape[-1]:
        return False
    leading = values.shape[values.dim() - ids.dim() : -1]
    return all(size in (1, expected) for size, expected in zip(ids.shape[:-1], leading, strict=True))


def _keys(values: Tensor, ids: Tensor) -> Tensor:
    """int64 in the order that is asked for: rank of the value in the upper half, MAX_ID - id in the lower.

    Shifts and masks rather than torch.where, which takes as long as all of this on a CPU.
    """
    bits = values.view(_BITS[values.dtype])
    limits = torch.iinfo(bits.dtype)
    magnitude = bits & limits.max
    sign = bits >> (limits.bits - 1)  # 0, or -1 where negative
    rank = (magnitude ^ sign) - sign  # magnitude or -magnitude; -0.0 leads to 0
    rank = rank.masked_fill(magnitude > _INFINITY_BITS[values.dtype], limits.max)  # NaN
    return (rank.long() << 32) | (MAX_ID - ids)
