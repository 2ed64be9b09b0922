"""The preallocated cache: appends are views, compaction keeps the accepted rows, transformers can use it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanospec.kv_cache import KVCache


def make_cache(capacity: int = 16) -> KVCache:
    cache = KVCache(num_layers=2, num_heads=2, head_dim=3, dtype=torch.float64, device=torch.device("cpu"))
    cache.reset(capacity)
    return cache


def rows(values: list[int]) -> torch.Tensor:
    """[1, 2, n, 3] whose row i is full of values[i]."""
    return torch.tensor(values, dtype=torch.float64)[None, None, :, None].expand(1, 2, -1, 3)


def append(cache: KVCache, values: list[int], behind: int = 0) -> list[int]:
    where = cache.rows(len(values), behind)
    for layer in range(2):
        keys, negated = where.append(layer, rows(values), -rows(values))
    assert torch.equal(keys, -negated)
    return keys[0, 0, :, 0].int().tolist()


def test_a_pass_writes_behind_the_certain_rows_or_behind_the_levels_before():
    cache = make_cache()
    assert append(cache, [1, 2, 3]) == [1, 2, 3]
    cache.commit(3)
    assert append(cache, [4, 5]) == [1, 2, 3, 4, 5]
    assert append(cache, [6], behind=2) == [1, 2, 3, 4, 5, 6]
    assert append(cache, [7]) == [1, 2, 3, 7]


def test_keys_and_values_of_two_sizes_lie_side_by_side():
    cache = KVCache(2, 1, head_dim=5, dtype=torch.float64, device=torch.device("cpu"), num_parts=1)
    cache.reset(8)
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(1, 1, 4, width, generator=generator).double() for width in (3, 2))
    cache.rows(3).append(1, keys[:, :, :3], values[:, :, :3])
    cache.compact(torch.tensor([0, 2]), num_accepted=2)
    all_keys, all_values = cache.rows(1).append(1, keys[:, :, 3:], values[:, :, 3:])
    assert torch.equal(all_keys, keys[:, :, [0, 2, 3]])
    assert torch.equal(all_values, values[:, :, [0, 2, 3]])
    assert not cache.buffer[0].any()


def test_compact_keeps_the_worked_example():
    cache = make_cache()
    append(cache, [1, 2, 3, 4, 5])
    cache.commit(5)
    append(cache, [10, 11, 12, 13])
    cache.compact(torch.tensor([0, 2, 3, 0]), num_accepted=3)
    assert cache.length == 8
    assert append(cache, [99]) == [1, 2, 3, 4, 5, 10, 12, 13, 99]


@given(st.integers(0, 5), st.integers(1, 8), st.data())
def test_compaction_equals_picking_rows(num_certain, num_nodes, data):
    accepted = [0, *sorted(data.draw(st.sets(st.integers(1, num_nodes - 1)) if num_nodes > 1 else st.just(set())))]
    padded = accepted + [0] * data.draw(st.integers(0, num_nodes - len(accepted)))
    cache = make_cache()
    append(cache, list(range(num_certain)))
    cache.commit(num_certain)
    append(cache, [100 + node for node in range(num_nodes)])
    cache.compact(torch.tensor(padded), len(accepted))
    assert append(cache, [7]) == [*range(num_certain), *(100 + node for node in accepted), 7]


def test_reset_keeps_the_buffer_unless_it_is_too_small():
    cache = make_cache(8)
    before = cache.buffer.data_ptr()
    cache.reset(8)
    assert cache.buffer.data_ptr() == before
    cache.reset(9)
    assert cache.capacity == 9


def test_overflow_is_our_own_mistake_and_says_so():
    with pytest.raises(AssertionError, match="holds 2 tokens, asked for 3"):
        append(make_cache(2), [1, 2, 3])


def test_a_buffer_made_in_inference_mode_can_be_written_outside():
    with torch.inference_mode():
        cache = make_cache()
    assert append(cache, [1, 2]) == [1, 2]


def test_what_is_rewound_is_written_anew():
    cache = KVCache(1, 1, 1, torch.float32, torch.device("cpu"))
    cache.reset(6)
    cache.commit(4)
    cache.rewind(2)
    assert cache.length == 2
    assert cache.rows(2).row_ids.tolist() == [2, 3]


@given(st.data())
def test_sequences_of_a_batch_are_compacted_as_each_by_itself(data):
    paths = st.sets(st.integers(1, 5), max_size=3).map(lambda nodes: [0, *sorted(nodes), *[0] * (3 - len(nodes))])
    length = torch.tensor([data.draw(st.integers(0, 10)) for _ in range(3)])
    accepted_pos = torch.tensor([data.draw(paths) for _ in range(3)])
    batch = make_cache().for_batch(4)
    batch.grow(16)
    batch.buffer.copy_(torch.randn(batch.buffer.shape, generator=torch.Generator().manual_seed(0)))
    expected = batch.buffer.clone()
    for sequence in range(3):
        alone = make_cache()
        alone.buffer = expected[:, :, sequence : sequence + 1]
        alone.compact_behind(length[sequence : sequence + 1], accepted_pos[sequence])
    batch.compact_behind(length, accepted_pos)
    assert torch.equal(batch.buffer, expected)


def test_a_sequence_is_taken_over_moved_and_kept_when_the_batch_grows():
    one = make_cache(capacity=6)
    append(one, [1, 2, 3, 4])
    one.commit(3)  # the fourth row is uncertain
    batch = one.for_batch(3)
    batch.grow(5)
    batch.buffer.fill_(torch.nan)
    batch.put(1, one)
    batch.copy_sequence(1, 2)
    batch.grow(8)
    batch.grow(2)
    assert batch.capacity == 8
    for sequence in (1, 2):
        assert batch.buffer[1, 0, sequence, 0, :, 0].tolist() == [1, 2, 3, 0, 0, 0, 0, 0]
    assert batch.buffer[:, :, 0, :, :5].isnan().all()
