"""The write of an attention layer into the shared cache: those rows and no others, and never on a copy of the cache."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._inductor.utils import run_and_get_code

from nanospec.ops.write_cache_rows import flat_rows, write_cache_rows

NUM_LAYERS, NUM_HEADS, CAPACITY, HEAD_DIM = 2, 3, 37, 5


def make_buffer() -> torch.Tensor:
    return torch.randn(NUM_LAYERS, 2, 1, NUM_HEADS, CAPACITY, HEAD_DIM, generator=torch.Generator().manual_seed(0))


@given(st.integers(0, NUM_LAYERS - 1), st.lists(st.integers(0, CAPACITY - 1), unique=True, max_size=9))
def test_writes_the_rows_of_one_layer_and_nothing_else(layer, row_ids):
    buffer, keys = make_buffer(), torch.full((1, NUM_HEADS, len(row_ids), HEAD_DIM), 7.0)
    expected = buffer.clone()
    for row in row_ids:
        expected[layer, 0, :, :, row], expected[layer, 1, :, :, row] = 7.0, -7.0
    write_cache_rows(buffer, layer, torch.tensor(row_ids, dtype=torch.int64), keys, -keys)
    assert torch.equal(buffer, expected)


def test_is_a_well_formed_operator():
    keys = torch.randn(1, NUM_HEADS, 2, HEAD_DIM)
    torch.library.opcheck(torch.ops.nanospec.write_cache_rows, (make_buffer(), 1, torch.tensor([3, 9]), keys, keys))


def test_a_compiled_pass_writes_in_place():
    def two_layers(buffer, row_ids, keys):
        for layer in range(NUM_LAYERS):
            write_cache_rows(buffer, layer, row_ids, keys, keys)
            keys = keys + buffer[layer, 0].sum(2, keepdim=True)
        return keys

    row_ids, keys = torch.tensor([3, 9]), torch.ones(1, NUM_HEADS, 2, HEAD_DIM)
    expected_buffer, buffer = make_buffer(), make_buffer()
    expected = two_layers(expected_buffer, row_ids, keys)
    result, code = run_and_get_code(torch.compile(two_layers, fullgraph=True), buffer, row_ids, keys)
    torch.testing.assert_close(result, expected)
    assert torch.equal(buffer[0], expected_buffer[0])
    size = f"({NUM_LAYERS}, 2, 1, {NUM_HEADS}, {CAPACITY}, {HEAD_DIM})"
    assert size in "".join(code), "the graph sees the whole cache"
    assert f"empty_strided_cpu({size}" not in "".join(code), "and makes no other one"


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_works_without_gradients(mode):
    buffer = make_buffer()
    with mode():
        write_cache_rows(buffer, 0, torch.tensor([1]), *torch.ones(2, 1, NUM_HEADS, 1, HEAD_DIM))
    assert buffer[0, 1, 0, 2, 1].tolist() == [1.0] * HEAD_DIM


@given(st.data())
def test_every_sequence_has_rows_of_its_own(data):
    rows = st.lists(st.integers(0, CAPACITY - 1), unique=True, min_size=4, max_size=4)
    row_ids = torch.tensor([data.draw(rows) for _ in range(3)])
    buffer = make_buffer().repeat(1, 1, 4, 1, 1, 1)  # more sequences than are written
    keys, values = torch.randn(2, 3, NUM_HEADS, 4, HEAD_DIM, generator=torch.Generator().manual_seed(1))
    expected = buffer.clone()
    for sequence in range(3):
        expected[1, 0, sequence, :, row_ids[sequence]] = keys[sequence]
        expected[1, 1, sequence, :, row_ids[sequence]] = values[sequence]
    write_cache_rows(buffer[:, :, :3], 1, row_ids, keys, values)
    assert torch.equal(buffer, expected)


def test_the_worked_example_of_flat_rows():
    assert flat_rows(torch.tensor([[0], [2]]), 1, 3).tolist() == [0, 5]
