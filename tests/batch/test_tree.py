"""The tree of a batch: smaller, the more requests share a pass."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from nanospec import SpeculativeDecoder, TreeShape
from nanospec.batch.tree import CPU_NODES, FEWEST_NODES, default_batch_tree
from nanospec.tree_tuning import StepCosts, tune_tree_shape
from tests.tiny_pair import tiny_drafter, tiny_target

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


def pair() -> SpeculativeDecoder:
    target = tiny_target(seed=4)
    return SpeculativeDecoder(target, tiny_drafter(target, 2, std=0.02), "in-context", TreeShape(3, 3, 10))


def test_a_measured_tree_decodes_exactly():
    decoder = pair()
    engine = decoder.batch_engine(3, "auto")
    assert engine.tree == engine.tree.validated()
    results = dict(decoder.generate_many([[1, 2, 3], [4]], 2, "auto", max_new_tokens=20))
    for place, prompt in enumerate(([1, 2, 3], [4])):
        assert results[place].token_ids == decoder.generate_autoregressive(prompt, max_new_tokens=20).token_ids


def test_the_dearer_a_node_the_smaller_the_measured_tree():
    def measured(seconds_per_node: float) -> int:
        return tune_tree_shape(
            pair(),
            lambda decoder, shape, counts: StepCosts(1e-3, 1e-3, {n: 1e-3 + n * seconds_per_node for n in counts}),
        ).num_nodes

    assert measured(10.0) == 2 < measured(1e-9)
