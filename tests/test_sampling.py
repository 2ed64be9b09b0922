from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from nanospec.sampling import SamplingParams, choose, penalize, pick_next, target_distribution, uniforms

# Both sides compute in float64 with a handful of roundings per probability.
PROBABILITY_TOLERANCE = 1e-12


def warped_by_transformers(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    scores = TemperatureLogitsWarper(params.temperature)(None, logits.double())
    if params.top_k > 0:
        scores = TopKLogitsWarper(params.top_k)(None, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(None, scores)
    if params.min_p > 0:
        scores = MinPLogitsWarper(params.min_p)(None, scores)
    return scores.softmax(-1)


@given(
    seed=st.integers(0, 10_000),
    vocab=st.sampled_from([1, 2, 7, 50, 3000]),
    temperature=st.sampled_from([0.1, 0.8, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 5, 40, 5000]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.05, 0.9, 1.0]),
)
@settings(max_examples=60)
def test_distribution_equals_that_of_transformers_warpers(seed, vocab, temperature, top_k, top_p, min_p):
    logits = torch.randn(3, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    params = SamplingParams(temperature, top_k, top_p, min_p)
    ours, theirs = target_distribution(logits, params), warped_by_transformers(logits, params)
    assert torch.equal(ours > 0, theirs > 0)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=PROBABILITY_TOLERANCE)


def test_top_p_is_the_same_when_the_first_candidates_do_not_carry_the_mass():
    peaked = torch.cat([torch.zeros(1, 10), torch.full((1, 2990), -20.0)], 1) + torch.linspace(0, 1, 3000)
    flat = torch.linspace(0, 1, 3000)[None]
    params = SamplingParams(temperature=1.0, top_p=0.9)
    together = target_distribution(torch.cat([peaked, flat]), params)
    torch.testing.assert_close(together[:1], target_distribution(peaked, params), rtol=0, atol=PROBABILITY_TOLERANCE)
    torch.testing.assert_close(together, warped_by_transformers(torch.cat([peaked, flat]), params), rtol=1e-9, atol=0)


def test_distribution_by_hand():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).double().log()
    table = {
        (0, 1.0, 0.0): [0.4, 0.3, 0.2, 0.1],
        (2, 1.0, 0.0): [4 / 7, 3 / 7, 0, 0],
        (0, 0.5, 0.0): [4 / 7, 3 / 7, 0, 0],
        (0, 0.8, 0.0): [4 / 9, 3 / 9, 2 / 9, 0],
        (0, 1.0, 0.6): [4 / 7, 3 / 7, 0, 0],
        (3, 0.5, 0.9): [1, 0, 0, 0],
    }
    for (top_k, top_p, min_p), expected in table.items():
        ours = target_distribution(logits, SamplingParams(1.0, top_k, top_p, min_p))
        torch.testing.assert_close(ours, torch.tensor(expected).double(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("limit", [{"top_k": 2}, {"top_p": 0.5}])
def test_of_equal_logits_the_smaller_ids_are_kept(limit):
    ours = target_distribution(torch.zeros(2, 4), SamplingParams(temperature=0.7, **limit))
    assert ours.tolist() == [[0.5, 0.5, 0, 0]] * 2


def test_temperature_zero_puts_all_mass_on_the_first_highest_logit():
    assert target_distribution(torch.tensor([1.0, 3.0, 3.0]), SamplingParams()).tolist() == [0, 1, 0]


def test_tiny_temperature_and_impossible_ids_stay_finite():
    logits = torch.tensor([50.0, -math.inf, 60.0])
    assert target_distribution(logits, SamplingParams(temperature=1e-300, top_k=2)).tolist() == [0, 0, 1]


def test_a_row_gets_the_same_distribution_alone_and_in_a_batch():
    logits = torch.randn(5, 3000, generator=torch.Generator().manual_seed(0)) * 4
    params = SamplingParams(temperature=0.9, top_k=2000, top_p=0.9, min_p=0.001)
    together = target_distribution(logits, params)
    assert all(torch.equal(together[i], target_distribution(logits[i], params)) for i in range(5))


@given(seed=st.integers(0, 10_000), penalty=st.sampled_from([0.5, 1.0, 1.3, 4.0]))
@settings(max_examples=25)
def test_penalty_equals_that_of_transformers(seed, penalty):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 20, generator=generator)
    input_ids = torch.randint(20, (2, 8), generator=generator)
    seen = torch.zeros(2, 20, dtype=torch.bool).scatter(1, input_ids, True)
    assert torch.equal(penalize(logits, seen, penalty), RepetitionPenaltyLogitsProcessor(penalty)(input_ids, logits))


def test_choose_by_hand():
    p = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0]).double()
    for u, expected in [(0.0, 1), (0.25, 1), (0.5, 3), (0.75, 3), (1 - 2**-53, 3), (1.0, 3)]:
        assert choose(p[None], torch.tensor([u]).double()).tolist() == [expected]


@given(weights=st.lists(st.sampled_from([0.0, 1e-18, 1e-9, 0.1, 1.0, 3.0]), min_size=1, max_size=30), data=st.data())
@settings(max_examples=100)
def test_choose_is_the_inverse_cdf_and_never_an_impossible_id(weights, data):
    if not any(weights):
        weights[0] = 1.0
    p = torch.tensor(weights).double()
    p = p / p.sum()
    u = data.draw(st.sampled_from([0.0, 1 - 2**-53]) | st.floats(0, 1, exclude_max=True))
    [chosen] = choose(p[None], torch.tensor([u]).double()).tolist()
    assert p[chosen] > 0
    cumulative = p.cumsum(0)
    assert chosen == 0 or cumulative[chosen - 1] <= u or cumulative[chosen - 1] == cumulative[-1]
    assert cumulative[chosen] > u or cumulative[chosen] == cumulative[-1]


def test_choose_draws_from_the_distribution():
    p = torch.tensor([0.05, 0.4, 0.0, 0.25, 0.2, 0.1]).double()
    num_draws = 50_000
    u = uniforms(SamplingParams(temperature=1.0, seed=3), num_draws, "cpu")
    counts = choose(p.expand(num_draws, -1), u).bincount(minlength=6)
    expected = (p * num_draws)[p > 0]
    chi_square = ((counts[p > 0] - expected) ** 2 / expected).sum()
    assert counts[p == 0].sum() == 0
    # Wilson-Hilferty for 4 degrees of freedom and z = 4.75 (one in a million): 4 (1 - 2/36 + 4.75 sqrt(2/36))^3
    assert chi_square < 35.3


def test_uniforms_reproduce_and_a_longer_draw_begins_with_the_shorter_one():
    params = SamplingParams(temperature=1.0, seed=7)
    long = uniforms(params, 1000, "cpu")
    assert long.dtype == torch.float64
    assert all(torch.equal(uniforms(params, n, "cpu"), long[:n]) for n in (0, 1, 2, 15, 16, 17, 33, 999))
    assert not torch.equal(uniforms(SamplingParams(seed=8), 1000, "cpu"), long)
    assert not torch.equal(uniforms(SamplingParams(), 9, "cpu"), uniforms(SamplingParams(), 9, "cpu"))


def test_pick_next_penalizes_before_the_argmax():
    logits, seen = torch.tensor([[2.0, 1.5, -1.0]]), torch.tensor([[True, False, True]])
    assert pick_next(logits, SamplingParams()).tolist() == [0]
    assert pick_next(logits, SamplingParams(repetition_penalty=2.0), seen=seen).tolist() == [1]
    with pytest.raises(ValueError, match="seen must be"):
        pick_next(logits, SamplingParams(repetition_penalty=2.0))
    with pytest.raises(ValueError, match="u must be"):
        pick_next(logits, SamplingParams(temperature=1.0))


@pytest.mark.parametrize(
    ("params", "is_greedy", "needs_full_logits"),
    [
        (SamplingParams(), True, False),
        (SamplingParams(repetition_penalty=1.1), True, True),
        (SamplingParams(temperature=1.0), False, True),
    ],
)
def test_full_logits_are_needed_unless_greedy_without_penalty(params, is_greedy, needs_full_logits):
    assert (params.is_greedy, params.needs_full_logits) == (is_greedy, needs_full_logits)


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("temperature", -0.1, ValueError),
        ("temperature", math.nan, ValueError),
        ("temperature", math.inf, ValueError),
        ("temperature", "1", TypeError),
        ("top_k", -1, ValueError),
        ("top_k", 1.5, TypeError),
        ("top_k", True, TypeError),
        ("top_p", 0.0, ValueError),
        ("top_p", 1.1, ValueError),
        ("min_p", -0.1, ValueError),
        ("min_p", 1.1, ValueError),
        ("repetition_penalty", 0.0, ValueError),
        ("repetition_penalty", None, TypeError),
        ("seed", 1.0, TypeError),
        ("seed", 2**64, ValueError),
    ],
)
def test_wrong_parameters_are_refused_by_name(argument, value, error):
    with pytest.raises(error, match=rf"^{argument} must"):
        SamplingParams(**{argument: value})


def test_logits_of_three_dimensions_are_refused():
    with pytest.raises(ValueError, match="logits must be"):
        target_distribution(torch.zeros(1, 2, 3), SamplingParams(temperature=1.0))
