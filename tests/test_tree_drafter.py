"""The dynamic tree against a plain search over all sequences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanospec.records import DraftVocab
from nanospec.tree_drafter import TreeDrafter
from nanospec.tree_shape import TreeShape, parse_tree_shape


class TableDrafter:
    """A drafter without memory: the logits of the next token depend on the last token alone."""

    name = "table"

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table
        self.levels: list[tuple[list[int], torch.Tensor]] = []

    def reset(self, capacity: int) -> None:
        self.levels = []

    def extend(self, token_ids, features):
        return token_ids[:, -1:, None].double()

    def advance(self, token_ids, states, depth, visible):
        assert visible.shape == (1, token_ids.shape[1], depth * token_ids.shape[1])
        self.levels.append((token_ids[0].tolist(), visible[0]))
        return token_ids[..., None].double()

    def logits(self, states, vocab: DraftVocab):
        rows = self.table[states[..., 0].long().clamp(min=0)]
        logits = rows.gather(-1, vocab.draft_ids.expand(rows.shape[0], -1)[:, None].expand(-1, rows.shape[1], -1))
        unused = torch.arange(logits.shape[-1]) >= vocab.count[:, None, None]
        return logits.masked_fill(unused, -math.inf)


def all_ids(size: int, count: int | None = None) -> DraftVocab:
    return DraftVocab(torch.arange(size)[None], torch.tensor([count if count is not None else size]), None)


def draft(table: torch.Tensor, shape: TreeShape, root: int, vocab: DraftVocab):
    drafter = TableDrafter(table)
    state = drafter.extend(torch.tensor([[root]]), None)
    return TreeDrafter(drafter, shape).draft(torch.tensor([[root]]), state, vocab), drafter


def plain_tree(table: torch.Tensor, shape: TreeShape, root: int) -> dict[tuple[int, ...], float]:
    """EAGLE-2 in plain Python: path below the root -> score, of the kept nodes."""
    log_prob = table.log_softmax(-1).float()

    def children(path: tuple[int, ...], score: float) -> list[tuple[tuple[int, ...], float]]:
        row = log_prob[path[-1] if path else root]
        best = row.topk(shape.branching)
        return [((*path, int(i)), score + float(v)) for v, i in zip(best.values, best.indices, strict=True)]

    frontier = children((), 0.0)
    candidates = list(frontier)
    for _ in range(shape.depth - 1):
        grown = [child for path, score in frontier for child in children(path, score)]
        candidates += grown
        frontier = sorted(grown, key=lambda node: -node[1])[: shape.branching]
    return dict(sorted(candidates, key=lambda node: -node[1])[: shape.num_nodes - 1])


def paths_of(tree) -> dict[tuple[int, ...], float]:
    token_ids, parents, scores = tree.token_ids[0].tolist(), tree.parent_pos[0].tolist(), tree.score[0].tolist()
    paths: list[tuple[int, ...]] = [()]
    for node in range(1, len(token_ids)):
        assert parents[node] < node
        paths.append((*paths[parents[node]], token_ids[node]))
    return dict(zip(paths[1:], scores[1:], strict=True))


@st.composite
def shapes(draw) -> TreeShape:
    depth, branching = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    most = 1 + TreeShape(depth, branching, 2).num_candidates
    return TreeShape(depth, branching, draw(st.integers(2, most)))


@given(shapes(), st.integers(0, 10_000))
def test_tree_equals_the_plain_search(shape, seed):
    table = torch.randn(11, 11, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    tree, _ = draft(table, shape, root=4, vocab=all_ids(11))
    expected, found = plain_tree(table, shape, root=4), paths_of(tree)
    assert found.keys() == expected.keys()
    for path, score in expected.items():
        assert found[path] == pytest.approx(score, abs=1e-5)
    assert tree.token_ids[0, 0] == 4


@given(shapes(), st.integers(0, 10_000))
def test_frontier_attends_to_its_own_branch_only(shape, seed):
    table = torch.randn(11, 11, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    _, drafter = draft(table, shape, root=0, vocab=all_ids(11))
    seen_tokens = [token for level, _ in drafter.levels for token in level]
    for depth, (tokens, visible) in enumerate(drafter.levels, start=1):
        for node, row in enumerate(visible):
            columns = row.nonzero().flatten().tolist()
            assert len(columns) == depth, "one node per level"
            assert seen_tokens[columns[-1]] == tokens[node]
            assert [column // shape.branching for column in columns] == list(range(depth))


@given(shapes(), st.integers(0, 4), st.integers(0, 1000))
def test_with_fewer_active_ids_than_children_the_rest_is_unused(shape, num_active, seed):
    table = torch.randn(9, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    tree, _ = draft(table, shape, root=8, vocab=all_ids(9, num_active))
    token_ids, parents = tree.token_ids[0].tolist(), tree.parent_pos[0].tolist()
    used = [node for node in range(1, len(token_ids)) if token_ids[node] >= 0]
    assert all(token_ids[node] < num_active for node in used)
    assert all(parents[node] == 0 or parents[node] in used for node in used)
    siblings = [(parents[node], token_ids[node]) for node in used]
    assert len(set(siblings)) == len(siblings)


def test_nan_logits_draft_nothing():
    tree, _ = draft(torch.full((7, 7), math.nan), TreeShape(3, 2, 6), root=1, vocab=all_ids(7))
    assert tree.token_ids[0].tolist() == [1, -1, -1, -1, -1, -1]


def test_equal_scores_keep_the_shallower_node():
    table = torch.full((4, 4), -1000.0, dtype=torch.float64)
    table[:, 2] = 0.0  # token 2 has probability 1 after every token: all scores along 2, 2, 2 are 0
    tree, _ = draft(table, TreeShape(3, 1, 3), root=0, vocab=all_ids(4))
    assert tree.depth[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        ((0, 2, 3), ValueError, "depth must be at least 1, got 0"),
        ((1, 0, 3), ValueError, "branching must be at least 1, got 0"),
        ((2, 2, 1), ValueError, "num_nodes must be at least 2, got 1"),
        ((1, 3, 5), ValueError, "at most 4 for depth 1 and branching 3, got 5"),
        ((2.0, 3, 5), TypeError, "depth must be an int, got 2.0"),
    ],
)
def test_impossible_shapes_are_named(shape, error, message):
    with pytest.raises(error, match=message):
        TreeShape(*shape).validated()


def test_parse_tree_shape():
    assert parse_tree_shape("3,4,12") == TreeShape(3, 4, 12)
    with pytest.raises(ValueError, match="'DEPTH,BRANCHING,NODES', got '3,4'"):
        parse_tree_shape("3,4")
