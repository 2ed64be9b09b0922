"""Whether two tensors are one output head: the one that rows were copied from, and the one that a graph uses."""

from __future__ import annotations

from torch import Tensor


def is_same_head(weight: Tensor, other: Tensor) -> bool:
    """Same memory, shape, strides and dtype: a detached head is the head."""
    if (weight.device, weight.dtype, weight.shape) != (other.device, other.dtype, other.shape):
        return False
    return weight.data_ptr() == other.data_ptr() and weight.stride() == other.stride()
