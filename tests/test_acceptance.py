from __future__ import annotations

from fractions import Fraction
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec.acceptance import accept_greedy, accept_sampled
from nanospec.acceptance_reference import greedy_walk, sequence_probabilities, sibling_outcomes
from nanospec.records import DraftTree, Verdict
from nanospec.sampling import SamplingParams, pick_next, uniforms
from nanospec.tree_layout import ancestor_mask, node_depth

VOCAB = 5
# Sums of a few dozen float64 products of probabilities.
PROBABILITY_TOLERANCE = 1e-12

distributions = st.lists(st.integers(0, 9), min_size=VOCAB, max_size=VOCAB).filter(any)
child_lists = st.permutations(range(VOCAB)).flatmap(lambda ids: st.integers(0, VOCAB).map(lambda n: ids[:n]))


def normalised(weights: list[int]) -> list[Fraction]:
    return [Fraction(w, sum(weights)) for w in weights]


@st.composite
def trees(draw, vocab: int = VOCAB, max_nodes: int = 12) -> tuple[list[int], list[int]]:
    """token_ids, parent_pos of a tree with distinct siblings and some unused nodes at random places."""
    token_ids, parent_pos = [draw(st.integers(0, vocab - 1))], [0]
    for position in range(1, draw(st.integers(1, max_nodes))):
        parent = draw(st.sampled_from([i for i in range(position) if token_ids[i] >= 0]))
        taken = {t for t, p in zip(token_ids[1:], parent_pos[1:], strict=True) if p == parent}
        token = draw(st.sampled_from([-1, *(t for t in range(vocab) if t not in taken)]))
        token_ids.append(token)
        parent_pos.append(parent)
    return token_ids, parent_pos


def as_draft_tree(rows: list[tuple[list[int], list[int]]], num_nodes: int) -> DraftTree:
    """Rows padded with unused nodes to a common length."""
    token_ids = torch.tensor([t + [-1] * (num_nodes - len(t)) for t, _ in rows])
    parent_pos = torch.tensor([p + [0] * (num_nodes - len(p)) for _, p in rows])
    mask = ancestor_mask(parent_pos, num_nodes)
    return DraftTree(token_ids, parent_pos, node_depth(mask), torch.zeros(token_ids.shape), mask)


def said(tree: DraftTree, verdict: Verdict, row: int) -> list[int]:
    path = verdict.accepted_pos[row, 1 : int(verdict.num_accepted[row])]
    return [*tree.token_ids[row, path].tolist(), int(verdict.next_id[row])]


def prefixes(token_ids: list[int], parent_pos: list[int]) -> list[tuple[int, ...]]:
    """Per node the drafted tokens from below the root to the node."""
    result: list[tuple[int, ...]] = [()]
    for position in range(1, len(token_ids)):
        result.append((*result[parent_pos[position]], token_ids[position]))
    return result


@given(weights=distributions, children=child_lists)
@settings(max_examples=100)
def test_outcomes_of_the_classic_rule_sum_to_the_target_for_any_child_set(weights, children):
    p = normalised(weights)
    accepted, residual = sibling_outcomes(p, children)
    total = list(residual)
    for child, chance in zip(children, accepted, strict=True):
        total[child] += chance
    assert total == p
    assert sum(accepted) == sum(p[child] for child in children)


def test_sibling_outcomes_by_hand():
    p = [Fraction(5, 10), Fraction(3, 10), Fraction(2, 10)]
    assert sibling_outcomes(p, [1, 0]) == ([Fraction(3, 10), Fraction(5, 10)], [0, 0, Fraction(2, 10)])
    with pytest.raises(ValueError, match="children must be distinct"):
        sibling_outcomes(p, [1, 1])


def cells(distributions: list[list[Fraction]]) -> tuple[list[float], list[Fraction]]:
    """Midpoints and widths of the intervals of u in which no inverse CDF of these distributions jumps."""
    edges = {Fraction(0), Fraction(1)}
    for p in distributions:
        edges |= {sum(p[:i], Fraction(0)) for i in range(1, VOCAB)}
    pieces = list(pairwise(sorted(edges)))
    return [float((a + b) / 2) for a, b in pieces], [b - a for a, b in pieces]


@given(weights=distributions, children=child_lists)
@settings(max_examples=40)
def test_one_node_accepts_each_child_as_often_as_the_classic_rule(weights, children):
    p = normalised(weights)
    middles, widths = cells([p])
    u = torch.tensor(middles).double()[:, None].expand(-1, 2)
    tree = as_draft_tree([([0, *children], [0] * (len(children) + 1))] * len(middles), len(children) + 1)
    logits = torch.tensor([float(x) for x in p]).double().log().expand(len(middles), len(children) + 1, VOCAB)
    verdict = accept_sampled(tree, logits, SamplingParams(temperature=1.0), u, None, 1)
    outcome: dict[tuple[bool, int], Fraction] = {}
    for row, width in enumerate(widths):
        key = (int(verdict.num_accepted[row]) == 2, said(tree, verdict, row)[0])
        outcome[key] = outcome.get(key, Fraction(0)) + width
    accepted, residual = sibling_outcomes(p, children)
    assert all(outcome.get((True, child), 0) == chance for child, chance in zip(children, accepted, strict=True))
    assert all(outcome.get((False, token), 0) == chance for token, chance in enumerate(residual))


@given(tree=trees(max_nodes=6), data=st.data())
@settings(max_examples=25)
def test_sequences_of_a_tree_are_as_probable_as_under_the_classic_rule(tree, data):
    token_ids, parent_pos = tree
    p = [normalised(data.draw(distributions)) for _ in token_ids]
    kept = [i for i, path in enumerate(prefixes(token_ids, parent_pos)) if len(path) < 2]  # two random numbers
    renumbered = {old: new for new, old in enumerate(kept)}
    token_ids, parent_pos, p = (
        [token_ids[i] for i in kept],
        [renumbered[parent_pos[i]] for i in kept],
        [p[i] for i in kept],
    )
    first, second = cells(p[:1]), cells(p)
    u = torch.tensor(list(product(first[0], second[0]))).double()
    chances = [a * b for a, b in product(first[1], second[1])]
    draft = as_draft_tree([(token_ids, parent_pos)] * len(u), len(token_ids))
    logits = torch.tensor([[float(x) for x in row] for row in p]).double().log().expand(len(u), -1, -1)
    verdict = accept_sampled(draft, logits, SamplingParams(temperature=1.0), u, None, 1)
    ours: dict[tuple[int, ...], Fraction] = {}
    for row, chance in enumerate(chances):
        key = tuple(said(draft, verdict, row))
        ours[key] = ours.get(key, Fraction(0)) + chance
    theirs = sequence_probabilities(token_ids, parent_pos, p)
    assert ours == theirs
    # What is said after an accepted child has p(x) p(y | x); a first token alone has p(x).
    for sequence, chance in ours.items():
        after_child = [i for i in range(1, len(token_ids)) if token_ids[i] == sequence[0]]
        expected = p[0][sequence[0]] * (p[after_child[0]][sequence[1]] if len(sequence) == 2 else 1)
        assert chance == expected
        assert len(sequence) == (2 if after_child else 1)


@given(rows=st.lists(trees(), min_size=1, max_size=4), data=st.data())
@settings(max_examples=100)
def test_greedy_equals_the_plain_walk(rows, data):
    num_nodes = max(len(t) for t, _ in rows) + data.draw(st.integers(0, 2))
    best = st.lists(st.integers(0, VOCAB - 1), min_size=num_nodes, max_size=num_nodes)
    best_id = [data.draw(best) for _ in rows]
    tree = as_draft_tree(rows, num_nodes)
    max_depth = int(tree.depth.max())
    verdict = accept_greedy(tree, torch.tensor(best_id), max_depth)
    assert verdict.accepted_pos.shape == (len(rows), max_depth + 1)
    for row, (token_ids, parent_pos) in enumerate(rows):
        path, next_id = greedy_walk(token_ids, parent_pos, best_id[row])
        assert verdict.accepted_pos[row].tolist() == path + [0] * (max_depth + 1 - len(path))
        assert int(verdict.num_accepted[row]) == len(path)
        assert int(verdict.next_id[row]) == next_id
    logits = torch.nn.functional.one_hot(torch.tensor(best_id), VOCAB).float()
    sampled = accept_sampled(tree, logits, SamplingParams(), None, None, max_depth)
    assert all(torch.equal(a, b) for a, b in zip(verdict, sampled, strict=True))


def test_greedy_by_hand():
    # root 4 -> {5, 7}, 7 -> 9; the target says 7 after the root, 9 after 7 and 3 after 9.
    tree = as_draft_tree([([4, 5, 7, 9, -1], [0, 0, 0, 2, 0])], 5)
    verdict = accept_greedy(tree, torch.tensor([[7, 0, 9, 3, 3]]), max_depth=3)
    assert [field.tolist() for field in verdict] == [[[0, 2, 3, 0]], [3], [3]]


def test_unused_nodes_are_never_accepted_whatever_stands_in_them():
    tree = as_draft_tree([([0, -1, -1], [0, 0, 1])], 3)
    tree = tree._replace(
        ancestor_mask=torch.zeros_like(tree.ancestor_mask).index_put_((torch.tensor(0),) * 3, torch.tensor(True))
    )
    verdict = accept_greedy(tree, torch.full((1, 3), -1), max_depth=2)
    assert verdict.accepted_pos.tolist() == [[0, 0, 0]]
    assert verdict.num_accepted.tolist() == [1]


SETTINGS = [
    SamplingParams(),
    SamplingParams(repetition_penalty=1.7),
    SamplingParams(temperature=0.7),
    SamplingParams(temperature=1.0, repetition_penalty=1.5),
    SamplingParams(temperature=1.5, top_k=3),
    SamplingParams(temperature=1.0, top_p=0.8),
    SamplingParams(temperature=1.0, min_p=0.3),
    SamplingParams(temperature=1.2, top_k=4, top_p=0.9, min_p=0.1, repetition_penalty=1.3),
]


def table_logits(prefix: tuple[int, ...]) -> torch.Tensor:
    """The target: a fixed random row of logits per sequence of output tokens."""
    seed = sum((token + 1) * (VOCAB + 1) ** i for i, token in enumerate(prefix))
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed))


def autoregressive(params: SamplingParams, u: torch.Tensor, prompt: list[int], length: int) -> list[int]:
    tokens: list[int] = []
    for t in range(length):
        seen = torch.zeros(1, VOCAB, dtype=torch.bool)
        seen[0, prompt + tokens] = True
        tokens.append(int(pick_next(table_logits(tuple(tokens))[None], params, u[t : t + 1], seen)))
    return tokens


@given(params=st.sampled_from(SETTINGS), rows=st.lists(trees(), min_size=1, max_size=3), seed=st.integers(0, 999))
@settings(max_examples=80)
def test_a_sampled_step_says_what_autoregressive_sampling_says(params, rows, seed):
    num_nodes = max(len(t) for t, _ in rows)
    tree = as_draft_tree(rows, num_nodes)
    max_depth = int(tree.depth.max())
    u = torch.rand(len(rows), max_depth + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    seen = torch.zeros(len(rows), VOCAB, dtype=torch.bool).scatter(1, tree.token_ids[:, :1], True)
    logits = torch.zeros(len(rows), num_nodes, VOCAB)
    for row, nodes in enumerate(rows):
        for node, prefix in enumerate(prefixes(*nodes)):
            logits[row, node] = table_logits(prefix)
    before = seen.clone()
    verdict = accept_sampled(tree, logits, params, u, seen, max_depth)
    assert torch.equal(seen, before)
    for row, (token_ids, parent_pos) in enumerate(rows):
        output = said(tree, verdict, row)
        expected = autoregressive(params, u[row], [token_ids[0]], max_depth + 1)
        assert output == expected[: len(output)]
        # The walk went on as long as the tree held the next token.
        assert tuple(output) not in prefixes(token_ids, parent_pos)
        alone = accept_sampled(
            DraftTree(*(field[row : row + 1] for field in tree)),
            logits[row : row + 1],
            params,
            u[row : row + 1],
            seen[row : row + 1],
            max_depth,
        )
        assert all(torch.equal(a[0], b[row]) for a, b in zip(alone, verdict, strict=True))


def test_the_penalty_sees_the_path_and_leaves_the_callers_mask_alone():
    tree = as_draft_tree([([0, 1, 1], [0, 0, 1])], 3)
    logits = torch.tensor([[[0.0, 2.0, 1.5, 0.0, 0.0]] * 3])  # id 1 until it has been said, then id 2
    seen = torch.tensor([[True, False, False, False, False]])
    verdict = accept_sampled(tree, logits, SamplingParams(repetition_penalty=2.0), None, seen, 2)
    assert said(tree, verdict, 0) == [1, 2]
    assert seen.tolist() == [[True, False, False, False, False]]


def test_walks_through_a_tree_are_distributed_like_the_target():
    num_draws = 20_000
    token_ids, parent_pos = [0, 1, 3, 2], [0, 0, 0, 1]
    p = torch.stack([table_logits(prefix) for prefix in prefixes(token_ids, parent_pos)]).softmax(-1).double()
    u = uniforms(SamplingParams(seed=11), 2 * num_draws, "cpu").view(num_draws, 2)
    tree = as_draft_tree([(token_ids, parent_pos)], 4)
    tree = DraftTree(*(field.expand(num_draws, *field.shape[1:]) for field in tree))
    logits = p.log().expand(num_draws, -1, -1)
    verdict = accept_sampled(tree, logits, SamplingParams(temperature=1.0), u, None, 1)
    first_node = verdict.accepted_pos[:, 1]
    chi_square = 0.0
    for node, token in [(1, 1), (2, 3)]:
        counts = verdict.next_id[first_node == node].bincount(minlength=VOCAB)
        expected = num_draws * p[0, token] * p[node]
        chi_square += float(((counts - expected) ** 2 / expected).sum())
    alone = verdict.next_id[first_node == 0].bincount(minlength=VOCAB)
    for token in (0, 2, 4):
        expected = num_draws * p[0, token]
        chi_square += float((alone[token] - expected) ** 2 / expected)
    assert alone[[1, 3]].sum() == 0
    # 13 outcomes; Wilson-Hilferty for 12 degrees of freedom and z = 4.75 (one in a million):
    # 12 (1 - 2/108 + 4.75 sqrt(2/108))^3
    assert chi_square < 52.2
