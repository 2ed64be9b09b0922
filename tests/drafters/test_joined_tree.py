"""A chain joined to a tree, against plain Python over paths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec.drafters.joined_tree import joined_tree
from nanospec.records import DraftTree
from nanospec.tree_layout import ancestor_mask, node_depth

MAX_DEPTH = 5
NUM_IDS = 4


def as_tree(token_ids: list[int], parents: list[int], scores: list[float]) -> DraftTree:
    parent_pos = torch.tensor([parents])
    ancestors = ancestor_mask(parent_pos, len(parents))
    return DraftTree(torch.tensor([token_ids]), parent_pos, node_depth(ancestors), torch.tensor([scores]), ancestors)


@st.composite
def trees(draw) -> DraftTree:
    """Any valid tree of depth at most MAX_DEPTH: distinct siblings, no child above its parent, unused leaves."""
    token_ids, parents, scores, depths = [9], [0], [0.0], [0]
    for _ in range(draw(st.integers(1, 12))):
        parent = draw(st.sampled_from([node for node, depth in enumerate(depths) if depth < MAX_DEPTH]))
        taken = {token for token, above in zip(token_ids[1:], parents[1:], strict=True) if above == parent}
        free = sorted({*range(NUM_IDS), -1} - taken)
        token = draw(st.sampled_from(free)) if token_ids[parent] >= 0 and free else -1
        token_ids.append(token)
        parents.append(parent)
        depths.append(depths[parent] + 1)
        scores.append(scores[parent] - draw(st.sampled_from([0.0, 0.5, 2.0])) if token >= 0 else float("-inf"))
    return as_tree(token_ids, parents, scores)


def paths(tree: DraftTree) -> dict[tuple[int, ...], float]:
    """Path below the root -> score, of used nodes."""
    token_ids, parents, scores = (column[0].tolist() for column in (tree.token_ids, tree.parent_pos, tree.score))
    found: list[tuple[int, ...]] = [()]
    for node in range(1, len(token_ids)):
        found.append((*found[parents[node]], token_ids[node]))
    return {path: score for path, score in zip(found, scores, strict=True) if -1 not in path}


def plain_join(tree: DraftTree, chain: list[int]) -> set[tuple[int, ...]]:
    """Paths of the joined tree: for every node that is missing, the worst leaf outside the chain is dropped."""
    num_nodes = tree.token_ids.shape[1]
    kept = dict(paths(tree))
    order = {path: place for place, path in enumerate(kept)}
    if -1 in chain:
        chain = chain[: chain.index(-1)]
    prefixes = [tuple(chain[:end]) for end in range(1, len(chain) + 1)][: num_nodes - 1]
    missing = [prefix for prefix in prefixes if prefix not in kept]
    while len(kept) + len(missing) > num_nodes:
        leaves = [path for path in kept if path not in prefixes and path != ()]
        del kept[min(leaves, key=lambda path: (kept[path], -order[path]))]
    return {*kept, *missing}


CHAINS = st.lists(st.integers(-1, NUM_IDS - 1), min_size=1, max_size=MAX_DEPTH)


@st.composite
def trees_and_chains(draw) -> tuple[DraftTree, list[int]]:
    """A chain begins with a path of the tree, most of the time."""
    tree = draw(trees())
    begin = draw(st.sampled_from(list(paths(tree))))
    return tree, [*begin, *draw(CHAINS)][:MAX_DEPTH]


@settings(max_examples=100)
@given(trees_and_chains())
def test_paths_are_those_of_plain_python_and_kept_nodes_keep_their_score(tree_and_chain):
    tree, chain = tree_and_chain
    joined = joined_tree(tree, torch.tensor([chain]), MAX_DEPTH)
    before, after = paths(tree), paths(joined)
    assert after.keys() == plain_join(tree, chain)
    assert all(after[path] == before[path] for path in after.keys() & before.keys())
    assert all(after[path] == after[path[:-1]] for path in after.keys() - before.keys())


@given(trees(), st.lists(CHAINS, min_size=1, max_size=3))
def test_a_joined_tree_is_a_valid_tree_of_as_many_nodes(tree, chains):
    joined = tree
    for chain in chains:
        joined = joined_tree(joined, torch.tensor([chain]), MAX_DEPTH)
    assert_valid(joined)
    assert joined.token_ids.shape == tree.token_ids.shape


def assert_valid(tree: DraftTree) -> None:
    token_ids, parents, scores = (column[0].tolist() for column in (tree.token_ids, tree.parent_pos, tree.score))
    num_nodes = len(token_ids)
    assert parents[0] == 0
    assert all(parents[node] < node for node in range(1, num_nodes)), "parents before children"
    siblings = [(parents[node], token_ids[node]) for node in range(1, num_nodes) if token_ids[node] >= 0]
    assert len(set(siblings)) == len(siblings), "siblings are distinct"
    assert all(token_ids[parent] >= 0 for parent, token in siblings), "used nodes have used parents"
    assert all(scores[node] <= scores[parents[node]] for node in range(1, num_nodes))
    ancestors = ancestor_mask(tree.parent_pos, num_nodes)
    assert torch.equal(tree.ancestor_mask, ancestors)
    assert torch.equal(tree.depth, node_depth(ancestors))


def test_the_worst_leaf_makes_room_for_a_new_node():
    tree = as_tree([5, 7, 8, 9], [0, 0, 0, 1], [0.0, -1.0, -2.0, -3.0])
    joined = joined_tree(tree, torch.tensor([[8, 4]]), 2)
    assert joined.token_ids.tolist() == [[5, 7, 8, 4]]
    assert joined.parent_pos.tolist() == [[0, 0, 0, 2]]
    assert joined.depth.tolist() == [[0, 1, 1, 2]]
    assert joined.score.tolist() == [[0.0, -1.0, -2.0, -2.0]]


def test_the_chains_own_nodes_stay_however_bad_they_are():
    tree = as_tree([5, 7, 8], [0, 0, 0], [0.0, -1.0, -2.0])
    joined = joined_tree(tree, torch.tensor([[8, 4]]), 2)
    assert joined.token_ids.tolist() == [[5, 8, 4]]
    assert joined.parent_pos.tolist() == [[0, 0, 1]]


def test_a_chain_that_does_not_fit_is_cut():
    tree = as_tree([5, 7], [0, 0], [0.0, -1.0])
    assert joined_tree(tree, torch.tensor([[8, 4, 4]]), 3).token_ids.tolist() == [[5, 8]]


def test_an_empty_chain_and_one_that_the_tree_holds_change_nothing():
    tree = as_tree([5, 7, 8, 9], [0, 0, 0, 1], [0.0, -1.0, -2.0, -3.0])
    for chain in ([-1, -1], [-1, 7], [7, 9], [8, -1], [8]):
        for before, after in zip(tree, joined_tree(tree, torch.tensor([chain]), 2), strict=True):
            assert torch.equal(before, after)


def test_rows_of_a_batch_do_not_mix():
    left = as_tree([5, 7, 8, 9], [0, 0, 0, 1], [0.0, -1.0, -2.0, -3.0])
    right = as_tree([2, 3, -1, -1], [0, 0, 1, 1], [0.0, -1.0, float("-inf"), float("-inf")])
    chains = torch.tensor([[1, 1, 2], [3, 4, -1]])
    both = joined_tree(DraftTree(*map(torch.cat, zip(left, right, strict=True))), chains, 3)
    for row, tree in enumerate((left, right)):
        alone = joined_tree(tree, chains[row : row + 1], 3)
        assert all(torch.equal(part[row : row + 1], whole) for part, whole in zip(both, alone, strict=True))


def test_a_chain_that_is_too_deep_is_refused():
    tree = as_tree([5, 7], [0, 0], [0.0, -1.0])
    with pytest.raises(ValueError, match="chain must have at most max_depth 2 tokens, got 3"):
        joined_tree(tree, torch.tensor([[1, 2, 3]]), 2)
