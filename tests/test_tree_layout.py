"""Ancestors and depths from parent positions."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from nanospec.tree_layout import additive_mask, ancestor_mask, node_depth


def test_worked_table():
    # 0 is the root; 1 and 2 its children; 3 below 1; 4 below 3; 5 below 2
    parent_pos = torch.tensor([[0, 0, 0, 1, 3, 2]])
    expected = torch.tensor(
        [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 0, 1, 0, 0, 0],
            [1, 1, 0, 1, 0, 0],
            [1, 1, 0, 1, 1, 0],
            [1, 0, 1, 0, 0, 1],
        ]
    ).bool()
    mask = ancestor_mask(parent_pos, max_depth=3)
    assert torch.equal(mask[0], expected)
    assert node_depth(mask).tolist() == [[0, 1, 1, 2, 3, 2]]


@given(st.data(), st.integers(1, 20))
def test_every_node_sees_itself_and_what_its_parent_sees(data, num_nodes):
    parents = [0] + [data.draw(st.integers(0, node - 1)) for node in range(1, num_nodes)]
    mask = ancestor_mask(torch.tensor([parents]), max_depth=num_nodes)[0]
    for node, parent in enumerate(parents):
        expected = {node} if node == 0 else {node, *mask[parent].nonzero().flatten().tolist()}
        assert set(mask[node].nonzero().flatten().tolist()) == expected


def test_additive_mask_is_zero_where_visible_and_finite_elsewhere():
    mask = additive_mask(torch.tensor([True, False]), torch.bfloat16)
    assert mask.tolist() == [0.0, torch.finfo(torch.bfloat16).min]
