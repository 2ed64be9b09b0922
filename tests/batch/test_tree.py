"""The tree of a batch: smaller, the more requests share a pass."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from nanospec import TreeShape
from nanospec.batch.tree import CPU_NODES, FEWEST_NODES, default_batch_tree

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_the_default_trees():
    assert default_batch_tree(TreeShape(5, 8, 32), 1, CPU) == TreeShape(5, 8, 32)
    assert default_batch_tree(TreeShape(5, 8, 32), 8, CPU) == TreeShape(5, 4, 12)
    assert default_batch_tree(TreeShape(5, 8, 32), 32, CPU) == TreeShape(3, 4, 4)
    assert default_batch_tree(TreeShape(6, 10, 60), 8, CUDA) == TreeShape(6, 10, 60)
    assert default_batch_tree(TreeShape(6, 10, 60), 16, CUDA) == TreeShape(6, 4, 30)


@given(st.integers(1, 6), st.integers(1, 8), st.integers(1, 64), st.data())
def test_a_default_tree_is_a_valid_one_no_larger_than_the_decoders(depth, branching, max_batch, data):
    tree = TreeShape(depth, branching, 2)
    tree = tree._replace(num_nodes=data.draw(st.integers(2, 1 + tree.num_candidates))).validated()
    shape = default_batch_tree(tree, max_batch, CPU)
    assert shape == shape.validated()
    assert shape.num_nodes <= min(tree.num_nodes, max(CPU_NODES // max_batch, FEWEST_NODES))
    assert shape.depth <= tree.depth
