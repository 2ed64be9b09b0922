from __future__ import annotations

import math

import pytest

from bench.suite.decoded import Decoded
from bench.suite.statistics import bootstrap, median, ratio_of_ratios, ratio_of_sums, summarize


def decoded(num_tokens=9, seconds=3.0, ttft=1.0, first_tokens=1, steps=4, step_tokens=8, active_rows=None, stages=None):
    return Decoded(list(range(num_tokens)), seconds, ttft, first_tokens, steps, step_tokens, active_rows, stages)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([5.0], (5, 5, 5)),
        ([0.0, 1.0], (0.5, 0, 1)),  # both the same: a quarter of the resamples each
        ([0.0, 0.0, 1.0], (0, 0, 1)),  # two ones or three: 7 of 27
        ([0.0] * 20 + [1.0], (0, 0, 0)),  # eleven ones of 21 do not come
    ],
)
def test_the_interval_of_a_median_is_that_of_its_resamples(values, expected):
    assert bootstrap([values], median) == expected


def test_the_interval_of_a_ratio_of_sums_is_that_of_its_resamples():
    assert bootstrap([[6, 2], [2, 2]], ratio_of_sums) == (2, 1, 3)


def test_a_ratio_that_every_prompt_has_alike_has_no_width():
    own, full = ([3, 8, 10], [2, 4, 8]), ([6, 16, 20], [2, 4, 8])
    assert bootstrap([*own, *full], ratio_of_ratios) == (0.5, 0.5, 0.5)


def test_prompts_without_a_number_are_left_out_and_none_left_is_none():
    assert bootstrap([[1, math.nan, 3], [1, 1, 1]], ratio_of_sums) == bootstrap([[1, 3], [1, 1]], ratio_of_sums)
    assert bootstrap([[math.nan]], median) is None
    assert bootstrap([[1], [0]], ratio_of_sums) is None


def test_the_same_results_give_the_same_interval():
    values = [[1.0, 4.0, 2.0, 7.0, 3.0]]
    assert bootstrap(values, median) == bootstrap(values, median)


def test_figures_of_a_row_by_hand():
    stages = {"draft": 0.5, "verify": 1.0, "vocabulary": 0.1, "other": 0.4}
    own = decoded(seconds=3.0, ttft=1.0, steps=4, step_tokens=10, active_rows=400, stages=stages)
    plain = decoded(seconds=4.5, ttft=0.5, steps=8)
    full = decoded(steps=4, step_tokens=20)
    figures = summarize([own], [plain], [full])
    estimates = {name: value["value"] for name, value in figures.items() if isinstance(value, dict) and "low" in value}
    assert estimates == {
        "tokens_per_second": 4,  # 8 tokens behind the first in 2 s
        "speedup": 2,
        "end_to_end_tokens_per_second": 3,
        "end_to_end_speedup": 1.5,
        "accept_length": 2.5,
        "relative_accept_length": 0.5,
        "ttft_ms": 1000,
        "ttft_ratio": 2,
    }  # fmt: skip
    assert (figures["prompts"], figures["active_rows"], figures["ms_per_step"]) == (1, 100, 500)
    assert figures["stage_ms_per_step"] == {"draft": 125, "verify": 250, "vocabulary": 25, "other": 100}


def test_a_speedup_is_the_median_of_the_prompts_own_ratios():
    own = [decoded(seconds=1 + seconds) for seconds in (1, 1, 4)]
    plain = [decoded(seconds=1 + seconds) for seconds in (2, 4, 4)]
    assert summarize(own, plain, None)["speedup"]["value"] == 2
    assert summarize(own, plain, None)["relative_accept_length"] is None


def test_an_answer_that_comes_at_once_has_no_speed_behind_its_first_tokens():
    figures = summarize([decoded(first_tokens=9, steps=0, step_tokens=0)], [decoded()], None)
    names = ("tokens_per_second", "speedup", "accept_length", "active_rows", "ms_per_step", "stage_ms_per_step")
    assert [figures[name] for name in names] == [None] * len(names)
    assert figures["end_to_end_speedup"]["value"] == 1
