"""Masks per kind of layer: what is visible, and what of it a window leaves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanospec.layer_masks import FULL, SLIDING, LayerMasks, within_window

MIXED = LayerMasks((SLIDING, FULL), window=2, by_kind=True)


def test_a_window_counts_positions_not_rows():
    visible = torch.tensor([[[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 0, 1]]]).bool()
    depth = torch.tensor([[0, 1, 1]])
    expected = [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 0, 1]]
    assert within_window(visible, 2, depth, 2).int()[0].tolist() == expected
    assert torch.equal(within_window(visible, torch.tensor([2]), depth, 2), within_window(visible, 2, depth, 2))


@given(st.data())
def test_what_lies_within_a_window_is_counted_one_by_one(data):
    length, num_nodes, num_unused = (data.draw(st.integers(low, 6)) for low in (0, 1, 0))
    window = data.draw(st.integers(1, 8))
    depth = data.draw(st.lists(st.integers(0, 5), min_size=num_nodes, max_size=num_nodes))
    end = length + num_nodes + num_unused
    cells = data.draw(st.lists(st.booleans(), min_size=num_nodes * end, max_size=num_nodes * end))
    visible = torch.tensor(cells).view(1, num_nodes, end)
    visible[:, :, length + num_nodes :] = False  # rows that hold nothing yet
    positions = [*range(length), *(length + d for d in depth)]
    expected = [
        [bool(visible[0, i, j]) and length + depth[i] - positions[j] < window for j in range(length + num_nodes)]
        + [False] * num_unused
        for i in range(num_nodes)
    ]
    found = within_window(visible, torch.tensor([length]), torch.tensor([depth]), window)
    assert found[0].tolist() == expected


def test_every_kind_gets_its_own_additive_mask():
    visible, depth = torch.ones(1, 1, 4, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.int64)
    sliding, full = MIXED.build(visible, 3, depth, torch.float32)
    lowest = torch.finfo(torch.float32).min
    assert sliding.tolist() == [[[[lowest, lowest, 0.0, 0.0]]]]
    assert full.tolist() == [[[[0.0] * 4]]]


def test_masks_are_handed_on_by_kind_or_as_one():
    sliding, full = torch.zeros(2, 1)
    assert MIXED.as_argument((sliding, full)) == {SLIDING: sliding, FULL: full}
    assert LayerMasks().as_argument((full,)) is full


def test_a_sliding_layer_without_a_window_is_our_mistake():
    with pytest.raises(AssertionError, match="a sliding layer has a window"):
        LayerMasks((SLIDING,)).build(torch.ones(1, 1, 1).bool(), 0, torch.zeros(1, 1).long(), torch.float32)


@given(st.data())
def test_sequences_of_different_lengths_have_the_windows_that_each_has_alone(data):
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, 6), min_size=2, max_size=3)))
    depth = torch.tensor([data.draw(st.lists(st.integers(0, 3), min_size=4, max_size=4)) for _ in lengths])
    visible, window = torch.ones(len(lengths), 4, 12, dtype=torch.bool), data.draw(st.integers(1, 6))
    found = within_window(visible, lengths, depth, window)
    for row in range(len(lengths)):
        part = slice(row, row + 1)
        assert torch.equal(found[part], within_window(visible[part], lengths[part], depth[part], window))
