"""Keys and values of all layers in one preallocated buffer: a tree is written behind the context, then compacted."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class CacheRows(NamedTuple):
    """Where one pass of a model writes: behind the first `start` rows of buffer [num_layers, 2, B, H, capacity, d].

    A plain value, so that a compiled pass takes the buffer as a tensor and `start` as one integer for all layers.
    """

    buffer: Tensor
    start: int

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """keys, values [B, H, n, d] -> views over the first start + n rows of this layer."""
        end = self.start + keys.shape[2]
        key_rows, value_rows = self.buffer[layer]
        key_rows[:, :, self.start : end] = keys
        value_rows[:, :, self.start : end] = values
        return key_rows[:, :, :end], value_rows[:, :, :end]


class KVCache:
    """One buffer [num_layers, 2, B, H, capacity, head_dim]; `length` tokens of it are certain.

    A pass writes where `rows` says, behind the certain tokens, and reads views, so attention never concatenates.
    Rows from `length` on belong to a draft tree: `compact` keeps the accepted ones, the next pass overwrites the rest.
    """

    def __init__(
        self,
        num_layers: int,
        num_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        batch_size: int = 1,
    ) -> None:
        self.shape = (num_layers, 2, batch_size, num_heads, 0, head_dim)
        self.buffer = torch.empty(self.shape, dtype=dtype, device=device)
        self.length = 0
        self.num_resets = 0

    @property
    def capacity(self) -> int:
        return self.buffer.shape[4]

    def fits(self, weight: Tensor) -> bool:
        """Whether a model with such weights can write here: same dtype, same device."""
        return (self.buffer.dtype, self.buffer.device) == (weight.dtype, weight.device)

    def reset(self, capacity: int) -> None:
        """Forget everything and make room for `capacity` tokens (certain ones and one tree)."""
        if capacity > self.capacity:
            with torch.inference_mode(False):  # an ordinary tensor, writable in and outside inference mode
                self.buffer = self.buffer.new_zeros(*self.shape[:4], capacity, self.shape[5])
        self.length = 0
        self.num_resets += 1

    def rows(self, num_tokens: int, behind: int = 0) -> CacheRows:
        """Where a pass over `num_tokens` writes: behind the certain tokens and `behind` uncertain ones."""
        start = self.length + behind
        end = start + num_tokens
        assert end <= self.capacity, f"KV cache holds {self.capacity} tokens, asked for {end}"
        return CacheRows(self.buffer, start)

    def commit(self, num_tokens: int) -> None:
        """The next `num_tokens` rows behind the certain ones become certain."""
        self.length += num_tokens

    def compact(self, accepted_pos: Tensor, num_accepted: int) -> None:
        """Move the accepted tree nodes to the front of the tree's rows and make them certain.

        accepted_pos int64 [L]: positions in the tree, increasing over the first `num_accepted`. Example: length 5,
        accepted_pos [0, 2, 3], num_accepted 3: rows 5, 7, 8 become rows 5, 6, 7 and length 8.
        """
        tree_rows = self.buffer[:, :, :, :, self.length :]
        tree_rows[:, :, :, :, : accepted_pos.shape[0]] = tree_rows.index_select(4, accepted_pos)
        self.commit(num_accepted)


class _CacheLayerView(CacheLayerMixin):
    """One layer of `CacheRows` as transformers sees it."""

    is_sliding = False
    is_croppable = False

    def __init__(self, rows: CacheRows, layer: int) -> None:
        super().__init__()
        self.rows, self.layer = rows, layer
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the buffer exists already."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        return self.rows.append(self.layer, key_states, value_states)

    def get_seq_length(self) -> int:
        return self.rows.start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return self.rows.buffer.shape[4]


def as_transformers_cache(rows: CacheRows) -> Cache:
    """A transformers `Cache` for one pass, whose layers write into `rows`."""
    return Cache(layers=[_CacheLayerView(rows, layer) for layer in range(rows.buffer.shape[0])])
