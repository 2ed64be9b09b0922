from __future__ import annotations

from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanospec.static_tree import StaticTree, default_static_tree
from nanospec.tree_shape import TreeShape

# Sums of a few products of rates, in another order.
RATE_TOLERANCE = 1e-12


def expected_tokens(paths, rates) -> float:
    """Accepted nodes per step: how often each path is right, summed."""
    total = 0.0
    for path in paths:
        right = 1.0
        for level, rank in enumerate(path):
            right *= rates[level][rank]
        total += right
    return total


@given(st.lists(st.lists(st.floats(0.05, 1.0), min_size=2, max_size=2), min_size=1, max_size=2), st.data())
def test_no_tree_of_its_size_is_expected_to_accept_more(rates, data):
    paths = [path for depth in range(1, len(rates) + 1) for path in product(range(2), repeat=depth)]
    num_nodes = data.draw(st.integers(2, 1 + len(paths)))
    tree = StaticTree.from_rates(rates, num_nodes)
    rivals = [
        set(some)
        for some in combinations(paths, num_nodes - 1)
        if all(len(path) == 1 or path[:-1] in some for path in some)
    ]
    best = max(expected_tokens(rival, rates) for rival in rivals)
    assert expected_tokens(tree.paths, rates) == pytest.approx(best, abs=RATE_TOLERANCE)
    assert tree.shape.num_nodes == num_nodes


def test_a_tree_by_hand():
    # 0.6, then 0.6 * 0.5 = 0.3 before 0.2, then 0.2 * 0.5 = 0.1 before 0.6 * 0.1 = 0.06
    tree = StaticTree.from_rates([[0.6, 0.2], [0.5, 0.1]], 5)
    assert tree.paths == ((0,), (1,), (0, 0), (1, 0))
    assert tree.levels == [[(0,), (1,)], [(0, 0), (1, 0)]]
    assert tree.frontiers == [[(0,), (1,)]]
    assert tree.shape == TreeShape(depth=2, branching=2, num_nodes=5)


def test_the_shape_is_as_wide_as_the_widest_pass():
    tree = StaticTree([(0,), (1,), (2,), (0, 0), (1, 0), (2, 0), (0, 0, 0)])
    assert tree.frontier_width == 3
    assert tree.shape == TreeShape(3, 3, 8)
    assert StaticTree([(4,), (0,)]).shape == TreeShape(1, 5, 3)


@pytest.mark.parametrize(("num_heads", "num_nodes"), [(1, 2), (1, 64), (4, 32), (5, 64)])
def test_the_default_tree_fits_its_heads(num_heads, num_nodes):
    tree = default_static_tree(num_heads, num_nodes)
    assert tree.shape.num_nodes == num_nodes
    assert tree.shape.depth <= num_heads
    assert tree.paths[0] == (0,)


@pytest.mark.parametrize(
    ("paths", "error", "message"),
    [
        ([], ValueError, r"at least one node and not the root, got \[\]"),
        ([(0,), ()], ValueError, "at least one node and not the root"),
        ([(0,), (1, 0)], ValueError, r"the parent of every node, got \(1, 0\) without \(1,\)"),
        ([(0,), (0,)], ValueError, "must be distinct, got 1 repetitions"),
        ([(-1,)], ValueError, r"ranks from 0 on, got \(-1,\)"),
        ([(0.0,)], TypeError, r"must hold ints, got \(0.0,\)"),
        ([(True,)], TypeError, r"must hold ints, got \(True,\)"),
    ],
)
def test_bad_paths_are_named(paths, error, message):
    with pytest.raises(error, match=message):
        StaticTree(paths)


@pytest.mark.parametrize(
    ("rates", "num_nodes", "message"),
    [
        ([[0.5]], 1, "num_nodes must be at least 2, got 1"),
        ([[0.5]], 3, "num_nodes must be at most 2 with these rates, got 3"),
        ([], 2, "rates must be numbers above 0"),
        ([[0.5], []], 2, "rates must be numbers above 0"),
        ([[1.5]], 2, "rates must be numbers above 0 and at most 1"),
    ],
)
def test_bad_rates_are_named(rates, num_nodes, message):
    with pytest.raises(ValueError, match=message):
        StaticTree.from_rates(rates, num_nodes)


def test_no_heads_are_refused():
    with pytest.raises(ValueError, match="num_heads must be at least 1, got 0"):
        default_static_tree(0)
