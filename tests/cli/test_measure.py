from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from nanospec.cli.measure import PROBE_PROMPTS, find_differences, headless_ratios, num_runs, timed_runs
from nanospec.result import Candidates

DECODED = [10, 11, 12]


def result(tokens, candidates=None):
    return SimpleNamespace(token_ids=tokens, candidates=candidates)


def differences(row_tokens, dtype, margin=0.1, rerun_tokens=None):
    """The runner-up at every position is token 99, `margin` below a top logit of 16, and token 98 lies far below it."""
    tokens = DECODED if rerun_tokens is None else rerun_tokens
    witness = result(tokens, [Candidates([token, 99, 98], [16.0, 16.0 - margin, 4.0]) for token in tokens])
    results = {"autoregressive": [result(DECODED)], "full": [result(row_tokens)]}
    return find_differences(results, lambda prompt: witness, dtype)


def test_the_order_of_rows_rotates_from_prompt_to_prompt_after_a_warm_up():
    calls = []

    def runner(name):
        return lambda prompt, max_new_tokens: calls.append((name, prompt, max_new_tokens))

    steps = []
    timed_runs({name: runner(name) for name in "abc"}, ["p", "q"], 64, lambda: steps.append(1))
    assert calls[:3] == [("a", "p", 16), ("b", "p", 16), ("c", "p", 16)]
    assert "".join(name for name, prompt, _ in calls[3:6]) == "abc"
    assert "".join(name for name, prompt, _ in calls[6:]) == "bca"
    assert {prompt for _, prompt, _ in calls[6:]} == {"q"}
    assert len(steps) == len(calls) == 9


def test_headless_ratio_comes_from_probe_runs_on_a_few_prompts():
    asked = []

    def generate(prompt, **settings):
        asked.append((prompt, settings["probe_headless"]))
        return SimpleNamespace(stats=SimpleNamespace(seconds={"draft": 0.3}, headless_draft_seconds=0.2))

    steps = []
    prompts = list(range(5))
    assert headless_ratios({"full": generate}, prompts, 8, lambda: steps.append(1))["full"] == pytest.approx(1.5)
    assert asked == [(prompt, True) for prompt in prompts[:PROBE_PROMPTS]]
    assert num_runs(num_rows=2, num_prompts=5) == 2 * 6 + len(steps)


def test_equal_tokens_need_no_second_run():
    results = {"autoregressive": [result([1])], "full": [result([1])]}
    assert find_differences(results, pytest.fail, torch.bfloat16) == []


def test_tokens_sampled_in_16_bits_may_differ_and_are_counted_others_are_judged():
    results = {"autoregressive": [result(DECODED)], "full": [result([10, 99, 12])]}
    (difference,) = find_differences(results, pytest.fail, torch.bfloat16, is_sampled=True)
    assert (difference.position, difference.margin, difference.near_tie) == (1, None, True)
    witness = result(DECODED, [Candidates([token, 99], [16.0, 15.9]) for token in DECODED])
    (difference,) = find_differences(results, lambda prompt: witness, torch.float32, is_sampled=True)
    assert not difference.near_tie


@pytest.mark.parametrize(
    ("dtype", "margin", "near_tie"),
    [
        (torch.bfloat16, 0.4375, True),
        (torch.bfloat16, 0.5, False),  # the bound of a top logit of 16
        (torch.float32, 0.0, False),
        (torch.float64, 0.0, False),
    ],
)
def test_a_difference_is_a_near_tie_only_below_the_bound_of_the_dtype(dtype, margin, near_tie):
    [difference] = differences([10, 99, 12], dtype, margin)
    assert (difference.position, difference.margin, difference.near_tie) == (1, margin, near_tie)


def test_a_token_far_below_the_top_is_no_near_tie_however_close_the_second_best_is():
    [difference] = differences([10, 98, 12], torch.bfloat16)
    assert (difference.margin, difference.bound, difference.near_tie) == (12.0, 0.5, False)


def test_a_token_that_is_not_among_the_candidates_is_no_near_tie():
    [difference] = differences([10, 97, 12], torch.bfloat16)
    assert (difference.position, difference.margin, difference.near_tie) == (1, None, False)


def test_an_output_that_ends_too_early_is_no_near_tie():
    [difference] = differences(DECODED[:2], torch.bfloat16)
    assert (difference.position, difference.margin, difference.near_tie) == (2, None, False)


def test_tokens_beyond_the_end_of_autoregressive_decoding_are_no_near_tie():
    [difference] = differences([*DECODED, 13], torch.bfloat16)
    assert (difference.position, difference.margin, difference.near_tie) == (3, None, False)


def test_a_margin_of_another_context_excuses_nothing():
    [difference] = differences([10, 11, 99], torch.bfloat16, rerun_tokens=[10, 50, 12])
    assert (difference.margin, difference.near_tie) == (None, False)
