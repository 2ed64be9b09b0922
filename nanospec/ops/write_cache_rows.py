"""Keys and values into a cache that all layers share: the one write of an attention layer, in place in every graph.

Registered as `torch.ops.nanospec.write_cache_rows`: what torch.compile sees as an assignment to a part of a graph's
input it may carry out on a copy of the whole input, here the cache of all layers.
"""

from __future__ import annotations

import torch
from torch import Tensor

OP_NAME = "nanospec::write_cache_rows"

torch.library.define(
    OP_NAME,
    "(Tensor(a!) buffer, int layer, Tensor row_ids, Tensor keys, Tensor values) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_OP = torch.ops.nanospec.write_cache_rows.default


def write_cache_rows(buffer: Tensor, layer: int, row_ids: Tensor, keys: Tensor, values: Tensor) -> None:
    """buffer[layer, 0 and 1, :, :, row_ids] = keys and values, in place; nothing else is touched.

    buffer       [num_layers, 2, B, H, capacity, head_dim]; or [num_layers, 1, ..], whose rows hold both side by side
    row_ids      int64 [n], the same for every sequence, or [B, n]; distinct, in [0, capacity): the caller's business,
                 as is the layer
    keys, values [B, H, n, head_dim], in the buffer's dtype; side by side they may differ in size
    """
    _OP(buffer, layer, row_ids, keys, values)


def flat_rows(row_ids: Tensor, num_heads: int, capacity: int) -> Tensor:
    """int64 [B * H * n]: where rows [B, n] of every sequence's heads lie in a layer's list of B * H * capacity rows.

    Example: row_ids [[0], [2]], 1 head and capacity 3 give 0 and 5.
    """
    heads = torch.arange(row_ids.shape[0] * num_heads, device=row_ids.device).view(-1, num_heads, 1)
    return (heads * capacity + row_ids[:, None]).flatten()


def _write(buffer: Tensor, layer: int, row_ids: Tensor, keys: Tensor, values: Tensor) -> None:
    if buffer.shape[1] == 1:
        _write_rows(buffer[layer, 0], row_ids, torch.cat((keys, values), -1))
        return
    key_rows, value_rows = buffer[layer]
    _write_rows(key_rows, row_ids, keys)
    _write_rows(value_rows, row_ids, values)


def _write_rows(rows: Tensor, row_ids: Tensor, new: Tensor) -> None:
    """rows [B, H, capacity, head_dim], new [B, H, n, head_dim]"""
    if row_ids.dim() == 1:
        rows.index_copy_(2, row_ids, new)
        return
    num_heads, capacity, head_dim = rows.shape[1:]
    rows.view(-1, head_dim).index_copy_(0, flat_rows(row_ids, num_heads, capacity), new.reshape(-1, head_dim))


def _fake(buffer: Tensor, layer: int, row_ids: Tensor, keys: Tensor, values: Tensor) -> None:
    """The result is in the buffer; no shape depends on it."""


torch.library.impl(OP_NAME, "CompositeExplicitAutograd", _write)
torch.library.register_fake(OP_NAME, _fake)
