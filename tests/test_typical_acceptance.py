"""Typical acceptance against the rule of the paper in plain Python, and that it is lossy only by name."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec import SamplingParams, SpeculativeDecoder, TreeShape, verify
from nanospec.acceptance_reference import typical_walk
from nanospec.request import Request
from nanospec.sampling import pick_next, target_distribution
from nanospec.step_graphs import FixedSteps
from nanospec.typical_acceptance import least_probability
from tests.test_acceptance import VOCAB, as_draft_tree, prefixes, trees
from tests.tiny_medusa import FEW_IDS, tiny_medusa
from tests.tiny_pair import tiny_target

# One exponential of a sum of five float64 terms.
THRESHOLD_TOLERANCE = 1e-12


def typical(epsilon: float = 0.09, delta: float = 0.3, **sampling) -> SamplingParams:
    settings = {"temperature": 1.0, **sampling}
    return SamplingParams(**settings, acceptance="typical", posterior_threshold=epsilon, posterior_alpha=delta)


def test_the_path_by_hand():
    # After the root H = 1.5 log 2, exp(-H) = 0.354, so the threshold is min(0.3, 0.6 * 0.354 = 0.212).
    p = [[0.5, 0.25, 0.25], [0.9, 0.05, 0.05], [0.4, 0.2, 0.4], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    token_ids, parent_pos = [0, 1, 2, 0, 1], [0, 0, 0, 1, 2]
    # 1 and 2 are kept with 0.25; below 1 id 0 has 0.9 > 0.3; below 2 id 1 has 0.2, less than 0.6 * exp(-1.055) = 0.209.
    assert typical_walk(token_ids, parent_pos, p, 0.3, 0.6) == [0, 1, 3]
    tree = as_draft_tree([(token_ids, parent_pos)], 5)
    logits = torch.tensor([p], dtype=torch.float64).log()
    u = torch.full((1, 3), 0.5, dtype=torch.float64)
    verdict = verify(tree, None, logits, typical(0.3, 0.6), u, max_depth=2)
    assert [field.tolist() for field in verdict] == [[[0, 1, 3]], [3], [0]]


@pytest.mark.parametrize(
    ("p", "expected"),
    [([1.0, 0.0], 0.09), ([0.5, 0.5], 0.09), ([1 / 8] * 8, 0.3 / 8), ([0.25] * 4, 0.075)],
)
def test_the_threshold_is_the_smaller_of_the_two(p, expected):
    threshold = least_probability(torch.tensor(p, dtype=torch.float64), typical())
    assert float(threshold) == pytest.approx(expected, abs=THRESHOLD_TOLERANCE)


@settings(max_examples=60)
@given(
    rows=st.lists(trees(), min_size=1, max_size=3),
    params=st.sampled_from(
        [
            typical(),
            typical(0.3, 0.6),
            typical(1.0, 2.0, temperature=0.4),
            typical(0.01, 0.05, temperature=2.0, top_k=3),
            typical(0.2, 0.4, top_p=0.8, repetition_penalty=1.5),
        ]
    ),
    seed=st.integers(0, 999),
)
def test_the_path_is_that_of_the_plain_rule(rows, params, seed):
    generator = torch.Generator().manual_seed(seed)
    num_nodes = max(len(token_ids) for token_ids, _ in rows)
    tree = as_draft_tree(rows, num_nodes)
    max_depth = int(tree.depth.max())
    logits = 2 * torch.randn(len(rows), num_nodes, VOCAB, generator=generator, dtype=torch.float64)
    u = torch.rand(len(rows), max_depth + 1, generator=generator, dtype=torch.float64)
    seen = torch.zeros(len(rows), VOCAB, dtype=torch.bool).scatter(1, tree.token_ids[:, :1], True)
    before = seen.clone()
    verdict = verify(tree, None, logits, params, u, seen, max_depth=max_depth)
    assert torch.equal(seen, before)
    for row, (token_ids, parent_pos) in enumerate(rows):
        p, next_ids = [], []
        for node, prefix in enumerate(prefixes(token_ids, parent_pos)):
            at_node = seen[row].clone()
            at_node[[token for token in prefix if token >= 0]] = True
            own = logits[row, node]
            if params.repetition_penalty != 1:
                own = torch.where(at_node, torch.where(own > 0, own / 1.5, own * 1.5), own)
            p.append(target_distribution(own, params).tolist())
            drawn = u[row, len(prefix)][None]
            next_ids.append(int(pick_next(logits[row, node][None], params, drawn, at_node[None])))
        path = typical_walk(token_ids, parent_pos, p, params.posterior_threshold, params.posterior_alpha)
        assert verdict.accepted_pos[row].tolist() == path + [0] * (max_depth + 1 - len(path))
        assert int(verdict.num_accepted[row]) == len(path)
        assert int(verdict.next_id[row]) == next_ids[path[-1]]


def test_non_finite_logits_keep_nothing_below_them():
    tree = as_draft_tree([([0, 1, 2], [0, 0, 1])], 3)
    logits = torch.zeros(1, 3, VOCAB, dtype=torch.float64)
    logits[0, 1] = math.nan
    verdict = verify(tree, None, logits, typical(0.05), torch.full((1, 3), 0.5, dtype=torch.float64), max_depth=2)
    assert verdict.num_accepted.tolist() == [2]


def decoder(tree: TreeShape = TreeShape(3, 4, 16)) -> SpeculativeDecoder:  # noqa: B008  # an immutable tuple
    target = tiny_target(4, FEW_IDS)
    return SpeculativeDecoder(target, tiny_medusa(target, 2), "in-context", tree)


def test_it_is_off_unless_named_and_says_that_it_is_lossy():
    pair, request = decoder(), {"max_new_tokens": 60, "temperature": 2.0, "seed": 1}
    exact = pair.generate([1, 2, 3], **request)
    lossy = pair.generate([1, 2, 3], **request, acceptance="typical", posterior_threshold=0.02)
    assert exact.lossless
    assert not lossy.lossless
    assert exact.token_ids == pair.generate_autoregressive([1, 2, 3], **request).token_ids
    assert lossy.token_ids != exact.token_ids
    assert lossy.stats.mean_accept_length > exact.stats.mean_accept_length
    pieces = list(pair.stream([1, 2, 3], **request, acceptance="typical", posterior_threshold=0.02))
    assert [token for piece in pieces for token in piece.token_ids] == lossy.token_ids
    assert not pair.last_stats.lossless
    assert pair.generate_autoregressive([1, 2, 3], **request, acceptance="typical").lossless


def test_steps_of_fixed_shape_keep_the_same_tokens():
    pair = decoder()
    settings = {"temperature": 2.0, "seed": 1, "repetition_penalty": 1.2, "acceptance": "typical"}
    expected = pair.generate([1, 2, 3], max_new_tokens=40, **settings)
    loop, stats = pair._speculate(Request(torch.tensor([[1, 2, 3]]), 40, SamplingParams(**settings)), pair.tree)
    loop.fixed_steps = FixedSteps(loop.decoding_step())
    assert [token for ids in loop.steps() for token in ids][:40] == expected.token_ids
    assert stats.target_passes == expected.stats.target_passes
    assert not stats.lossless


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (
            {"acceptance": "loose", "temperature": 1.0},
            ValueError,
            "must be one of exact, typical, got 'loose'",
        ),
        ({"acceptance": "typical"}, ValueError, "temperature must be above 0 with acceptance 'typical', got 0.0"),
        ({"posterior_threshold": 0.0}, ValueError, "posterior_threshold must be above 0, got 0.0"),
        ({"posterior_alpha": -1}, ValueError, "posterior_alpha must be above 0, got -1"),
        ({"posterior_alpha": "high"}, TypeError, "posterior_alpha must be a number, got 'high'"),
        ({"posterior_threshold": math.inf}, ValueError, "posterior_threshold must be finite"),
    ],
)
def test_bad_settings_name_the_argument(params, error, message):
    with pytest.raises(error, match=message):
        decoder().generate([1], **params)
