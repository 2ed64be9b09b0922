"""Whether two tensors are one output head: the one that rows were copied from, and the one that a graph uses."""

from __future__ import annotations

from torch import Tensor

from nanospec.head_shard import HeadShard, head_shard, whole_head


def is_same_head(weight: Tensor | HeadShard, other: Tensor | HeadShard) -> bool:
    """Same memory, shape, strides and dtype: a detached head is the head. Of a sharded one, the part that lies here."""
    shards = head_shard(weight), head_shard(other)
    if shards[0] is not None or shards[1] is not None:
        if shards[0] is None or shards[1] is None or shards[0].shape != shards[1].shape:
            return False
        weight, other = shards[0].rows, shards[1].rows
    weight, other = whole_head(weight), whole_head(other)
    if (weight.device, weight.dtype, weight.shape) != (other.device, other.dtype, other.shape):
        return False
    return weight.data_ptr() == other.data_ptr() and weight.stride() == other.stride()
