"""Keys and values of all layers in one preallocated buffer: a tree is written behind the context, then compacted."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from nanospec.ops.write_cache_rows import flat_rows, write_cache_rows


class CacheRows(NamedTuple):
    """Where one pass of a model writes, and how far it reads: rows of buffer [num_layers, 2, B, H, capacity, d], or
    [num_layers, 1, B, H, capacity, d + d'] with keys and values side by side.

    row_ids int64 [n], or [B, n] where sequences differ, are written, one for each token of the pass; the first `end`
    rows are read. A plain value, so that a compiled or captured pass takes both tensors as they are.
    """

    buffer: Tensor
    row_ids: Tensor
    end: int

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """keys, values [B, H, n, d] -> views over the first `end` rows of this layer."""
        write_cache_rows(self.buffer, layer, self.row_ids, keys, values)
        if self.buffer.shape[1] == 1:
            key_rows, value_rows = self.buffer[layer, 0].split((keys.shape[-1], values.shape[-1]), -1)
        else:
            key_rows, value_rows = self.buffer[layer]
        return key_rows[:, :, : self.end], value_rows[:, :, : self.end]


class CachePlace(NamedTuple):
    """Where a step of fixed shapes works, while only the device knows how many tokens are certain.

    length int64 [B]  certain tokens of each sequence: passes write behind them
    width             rows that every pass reads, a bound of all that is certain or drafted; what is neither is masked
    """

    length: Tensor
    width: int

    def rows(self, buffer: Tensor, num_tokens: int, behind: int = 0) -> CacheRows:
        """As `KVCache.rows`, over a buffer of at least `width` rows and its first B sequences."""
        batch_size = self.length.shape[0]
        offsets = torch.arange(behind, behind + num_tokens, device=self.length.device)
        row_ids = self.length + offsets if batch_size == 1 else self.length[:, None] + offsets
        return CacheRows(buffer if buffer.shape[2] == batch_size else buffer[:, :, :batch_size], row_ids, self.width)

    def visible(self, nodes: Tensor) -> Tensor:
        """What n tokens see: all certain rows, of the m rows behind them what bool `nodes` [B, n, m] says, no other.

        Returns bool [B, n, width]. Example: length 2, width 5, nodes [[1, 0]] give [[1, 1, 1, 0, 0]].
        """
        num_nodes = nodes.shape[2]
        rows = torch.arange(self.width, device=nodes.device)
        if self.length.shape[0] == 1:
            position = rows - self.length  # among the rows behind
            among = nodes.index_select(2, position.clamp(0, num_nodes - 1))
            return (position < 0) | (among & (position < num_nodes))
        position = (rows - self.length[:, None])[:, None].expand(-1, nodes.shape[1], -1)
        among = nodes.expand(self.length.shape[0], -1, -1).gather(2, position.clamp(0, num_nodes - 1))
        return (position < 0) | (among & (position < num_nodes))


class KVCache:
    """One buffer [num_layers, num_parts, B, H, capacity, head_dim]; `length` tokens of it are certain.

    num_parts  2: keys and values; 1: both side by side in one row of `head_dim` numbers, where their sizes differ

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
        num_parts: int = 2,
    ) -> None:
        self.shape = (num_layers, num_parts, batch_size, num_heads, 0, head_dim)
        self.buffer = torch.empty(self.shape, dtype=dtype, device=device)
        self.length = 0
        self.num_resets = 0

    @property
    def capacity(self) -> int:
        return self.buffer.shape[4]

    def fits(self, weight: Tensor) -> bool:
        """Whether a model with such weights can write here: same dtype, same device."""
        return (self.buffer.dtype, self.buffer.device) == (weight.dtype, weight.device)

    def for_batch(self, batch_size: int) -> KVCache:
        """An empty cache of the same form for so many sequences, whose lengths the caller counts."""
        other = copy.copy(self)
        other.shape = (*self.shape[:2], batch_size, *self.shape[3:])
        other.buffer, other.length, other.num_resets = self.buffer.new_empty(other.shape), 0, 0
        return other

    def grow(self, capacity: int) -> None:
        """Room for at least `capacity` tokens per sequence; what is held stays, also where this raises, as `reset`."""
        held, num_rows = self.buffer, self.capacity
        if capacity > num_rows:
            grown = self._new_buffer(capacity)
            grown[:, :, :, :, :num_rows] = held
            self.buffer = grown

    def put(self, sequence: int, other: KVCache) -> None:
        """Take over the certain tokens of `other`, a cache of one sequence; zeros behind them, as `clear_uncertain`."""
        row = self.buffer[:, :, sequence]
        row[:, :, :, : other.length] = other.buffer[:, :, 0, :, : other.length]
        row[:, :, :, other.length :] = 0

    def copy_sequence(self, source: int, destination: int) -> None:
        """Sequence `destination` becomes what `source` is."""
        self.buffer[:, :, destination] = self.buffer[:, :, source]

    def reset(self, capacity: int) -> None:
        """Forget everything and make room for `capacity` tokens (certain ones and one tree).

        Raises MemoryError, on CUDA torch.OutOfMemoryError, if there is no such room; what was there is gone then, and
        the next request may ask for less.
        """
        self.length = 0
        self.num_resets += 1
        if capacity > self.capacity:
            self.buffer = self.buffer.new_empty(self.shape)  # the old one goes first
            self.buffer = self._new_buffer(capacity)

    def resume(self, length: int, capacity: int) -> None:
        """As `reset`, but the first `length` tokens stay certain. Where this raises, all that was there stays."""
        assert length <= self.length, f"KV cache holds {self.length} certain tokens, asked to keep {length}"
        self.grow(capacity)
        self.length = length
        self.num_resets += 1

    def _new_buffer(self, capacity: int) -> Tensor:
        try:
            with torch.inference_mode(False):  # an ordinary tensor, writable in and outside inference mode
                return self.buffer.new_zeros(*self.shape[:4], capacity, self.shape[5])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            num_bytes = self.buffer.itemsize * math.prod((*self.shape[:4], capacity, self.shape[5]))
            raise MemoryError(
                f"a key-value cache of {capacity} tokens needs {num_bytes:,} bytes, which could not be had: {error}"
            ) from error

    def clear_uncertain(self) -> None:
        """Zeros behind the certain rows: a masked row still counts 0 times its value, and 0 times NaN is NaN."""
        self.buffer[:, :, :, :, self.length :] = 0

    def rows(self, num_tokens: int, behind: int = 0) -> CacheRows:
        """Where a pass over `num_tokens` writes: behind the certain tokens and `behind` uncertain ones."""
        start = self.length + behind
        end = start + num_tokens
        assert end <= self.capacity, f"KV cache holds {self.capacity} tokens, asked for {end}"
        return CacheRows(self.buffer, torch.arange(start, end, device=self.buffer.device), end)

    def commit(self, num_tokens: int) -> None:
        """The next `num_tokens` rows behind the certain ones become certain."""
        self.length += num_tokens

    def rewind(self, length: int) -> None:
        """Only the first `length` tokens stay certain; what is written behind them is overwritten."""
        assert 0 <= length <= self.capacity, f"KV cache holds {self.capacity} tokens, asked for {length}"
        self.length = length

    def compact(self, accepted_pos: Tensor, num_accepted: int) -> None:
        """Move the accepted tree nodes to the front of the tree's rows and make them certain.

        accepted_pos int64 [L]: positions in the tree, increasing over the first `num_accepted`. Example: length 5,
        accepted_pos [0, 2, 3], num_accepted 3: rows 5, 7, 8 become rows 5, 6, 7 and length 8.
        """
        self.compact_behind(torch.full((1,), self.length, device=accepted_pos.device), accepted_pos)
        self.commit(num_accepted)

    def compact_behind(self, length: Tensor, accepted_pos: Tensor) -> None:
        """`compact` where the number of certain tokens is int64 [1] on the device; `commit` is left to the caller.

        For the first B sequences: length int64 [B], accepted_pos [B, L]. Two launches for all layers. Rows of the
        padding of `accepted_pos` come out as copies of others: uncertain.
        """
        places = torch.arange(accepted_pos.shape[-1], device=accepted_pos.device)
        if accepted_pos.dim() == 1:
            self.buffer.index_copy_(4, length + places, self.buffer.index_select(4, length + accepted_pos))
            return
        num_layers, num_parts, _, num_heads, capacity, head_dim = self.buffer.shape
        planes, length = self.buffer.view(num_layers * num_parts, -1, head_dim), length[:, None]
        kept = planes.index_select(1, flat_rows(length + accepted_pos, num_heads, capacity))
        planes.index_copy_(1, flat_rows(length + places, num_heads, capacity), kept)


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
        return self.rows.end - self.rows.row_ids.shape[-1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return self.rows.buffer.shape[4]


def as_transformers_cache(rows: CacheRows) -> Cache:
    """A transformers `Cache` for one pass, whose layers write into `rows`."""
    return Cache(layers=[_CacheLayerView(rows, layer) for layer in range(rows.buffer.shape[0])])
