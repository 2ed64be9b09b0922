from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanospec import StaticTree, build_vocab_selector
from nanospec.drafters.eagle import EagleDrafter
from nanospec.static_tree_drafter import StaticTreeDrafter
from nanospec.tree_layout import ancestor_mask, node_depth
from tests.tiny_medusa import FEW_IDS, tiny_medusa
from tests.tiny_pair import tiny_drafter, tiny_target

# float32 log-probabilities of logits up to 50, summed over at most four levels.
SCORE_TOLERANCE = {"rel": 1e-6, "abs": 1e-5}


@st.composite
def static_trees(draw, max_depth: int = 4, max_rank: int = 3, max_nodes: int = 14) -> StaticTree:
    paths = [()]
    for _ in range(draw(st.integers(1, max_nodes))):
        parent = draw(st.sampled_from([path for path in paths if len(path) < max_depth]))
        path = (*parent, draw(st.integers(0, max_rank)))
        if path not in paths:
            paths.append(path)
    return StaticTree(paths[1:])


def prompt(drafter: EagleDrafter, length: int) -> Tensor:
    """Starts a request and takes in a prompt; returns the state after it."""
    generator = torch.Generator().manual_seed(length)
    drafter.reset(64)
    ids = torch.randint(FEW_IDS, (1, length), generator=generator)
    return drafter.extend(ids, torch.randn(1, length, 24, generator=generator, dtype=torch.float64))


@settings(max_examples=25)
@given(static_trees(), st.integers(1, 6))
def test_every_node_is_the_ranked_child_of_its_parents_own_chain(tree, length):
    """Against a drafter that runs one branch at a time, without a tree mask."""
    target = tiny_target(2, FEW_IDS)
    drafter = tiny_drafter(target, 3)
    vocab = build_vocab_selector("full", target.head_weight).select()
    state = prompt(drafter, length)
    grown = StaticTreeDrafter(drafter, tree, target.device).draft(torch.zeros(1, 1, dtype=torch.int64), state, vocab)
    for node, path in enumerate(tree.paths, start=1):
        branch_state, score, chain = prompt(drafter, length), 0.0, []
        for depth, rank in enumerate(path):
            if depth:
                visible = torch.ones(1, 1, depth, dtype=torch.bool)
                branch_state = drafter.advance(chain[-1][None, None], branch_state, depth, visible)
            best = drafter.logits(branch_state, vocab)[0, 0].log_softmax(-1).topk(rank + 1)
            chain.append(best.indices[rank])
            score += float(best.values[rank])
        assert int(grown.token_ids[0, node]) == int(chain[-1])
        assert float(grown.score[0, node]) == pytest.approx(score, **SCORE_TOLERANCE)


@given(static_trees())
def test_the_layout_is_that_of_the_paths(tree):
    target = tiny_target(2, FEW_IDS)
    drafter = tiny_medusa(target, 3, num_heads=4)
    vocab = build_vocab_selector("full", target.head_weight).select()
    root = drafter.extend(torch.zeros(2, 1, dtype=torch.int64), torch.randn(2, 1, 24, dtype=torch.float64))
    grown = StaticTreeDrafter(drafter, tree, target.device).draft(torch.zeros(2, 1, dtype=torch.int64), root, vocab)
    paths = [(), *tree.paths]
    expected = [0, *(paths.index(path[:-1]) for path in tree.paths)]
    assert grown.parent_pos.tolist() == [expected, expected]
    assert grown.depth[1].tolist() == [len(path) for path in paths]
    mask = ancestor_mask(grown.parent_pos, tree.shape.depth)
    assert torch.equal(grown.ancestor_mask, mask)
    assert torch.equal(grown.depth, node_depth(mask))
    assert grown.token_ids.shape == grown.score.shape == (2, tree.shape.num_nodes)


def test_ranks_that_a_vocabulary_does_not_have_are_unused_nodes():
    target = tiny_target(2, FEW_IDS)
    drafter = tiny_medusa(target, 3)
    vocab = build_vocab_selector("in-context", target.head_weight, capacity=8)
    vocab.observe(torch.tensor([[5, 9]]))
    root = drafter.extend(torch.zeros(1, 1, dtype=torch.int64), torch.randn(1, 1, 24, dtype=torch.float64))
    tree = StaticTree([(0,), (1,), (2,), (2, 0), (0, 1), (0, 3)])
    grown = StaticTreeDrafter(drafter, tree, target.device).draft(
        torch.zeros(1, 1, dtype=torch.int64), root, vocab.select()
    )
    assert [token in (5, 9) for token in grown.token_ids[0, 1:].tolist()] == [True, True, False, True, False, False]
    assert grown.token_ids[0, [3, 5, 6]].tolist() == [-1, -1, -1]
