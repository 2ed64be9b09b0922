from __future__ import annotations

import pytest

from nanospec.cli.measure import Difference
from nanospec.cli.rows import build_rows, ratio
from nanospec.result import GenerationResult
from nanospec.stats import GenerationStats


def result(new_tokens, steps, step_tokens, active_rows, draft, verify, vocabulary, other):
    spent = {"prefill": 7.0, "draft": draft, "verify": verify, "vocabulary": vocabulary, "other": other, "step": 0.0}
    passes = steps + 1
    stats = GenerationStats("v", "eagle", "cpu", "float32", None, new_tokens, passes, steps, step_tokens, active_rows)
    stats.seconds = spent
    return GenerationResult([0] * new_tokens, None, "length", stats)


@pytest.fixture
def rows():
    results = {
        "autoregressive": [result(9, 8, 8, 0, 0, 3.0, 0, 1.0), result(5, 4, 4, 0, 0, 1.5, 0, 0.5)],
        "full": [result(9, 4, 8, 4000, 1.0, 0.5, 0, 0.1), result(5, 2, 4, 2000, 0.5, 0.2, 0, 0.1)],
        "in-context": [result(9, 4, 10, 300, 0.3, 0.5, 0.05, 0.05), result(5, 1, 4, 50, 0.2, 0.2, 0.01, 0.19)],
    }
    near_tie = Difference("in-context", 1, 2, 0.1, 0.5, near_tie=True)
    wrong = Difference("full", 0, 1, 2.0, 0.5, near_tie=False)
    headless = {"full": 5.0, "in-context": 1.3}
    return {row.vocab: row for row in build_rows(results, headless, [wrong, near_tie])}


def test_rates_leave_out_prefill_and_the_token_that_it_yields(rows):
    assert rows["autoregressive"].tokens_per_second == pytest.approx(12 / 6.0)
    assert rows["full"].tokens_per_second == pytest.approx(12 / 2.4)
    assert rows["in-context"].tokens_per_second == pytest.approx(12 / 1.5)
    assert rows["in-context"].seconds["prefill"] == 14.0


def test_end_to_end_counts_every_token_and_every_second(rows):
    assert rows["autoregressive"].end_to_end_tokens_per_second == pytest.approx(14 / 20.0)
    assert rows["in-context"].end_to_end_tokens_per_second == pytest.approx(14 / 15.5)
    assert rows["in-context"].end_to_end_vs_autoregressive == pytest.approx(20.0 / 15.5)
    assert rows["in-context"].prefill_ms_per_prompt == pytest.approx(7000.0)
    assert (rows["in-context"].new_tokens, rows["in-context"].new_tokens_per_prompt) == (14, 7.0)


def test_speed_ups_are_ratios_of_rates(rows):
    assert rows["autoregressive"].speedup_vs_autoregressive == 1.0
    assert rows["full"].speedup_vs_autoregressive == pytest.approx(2.5)
    assert rows["in-context"].speedup_vs_autoregressive == pytest.approx(4.0)
    assert rows["in-context"].speedup_vs_full == pytest.approx(1.6)


def test_means_are_totals_over_all_steps_not_means_of_means(rows):
    assert rows["full"].mean_accept_length == pytest.approx(12 / 6)
    assert rows["in-context"].mean_accept_length == pytest.approx(14 / 5)
    assert rows["in-context"].accept_vs_full == pytest.approx(1.4)
    assert rows["in-context"].mean_active_vocab == pytest.approx(350 / 5)


def test_draft_time_is_per_step_and_relative_to_full(rows):
    assert rows["full"].draft_ms_per_step == pytest.approx(250.0)
    assert rows["in-context"].draft_ms_per_step == pytest.approx(100.0)
    assert rows["in-context"].draft_vs_full == pytest.approx(0.4)
    assert rows["in-context"].draft_vs_headless == 1.3
    assert rows["in-context"].vocabulary_share == pytest.approx(0.04)


def test_plain_decoding_has_no_draft_figures(rows):
    plain = rows["autoregressive"]
    assert plain.mean_accept_length == 1.0
    assert [plain.mean_active_vocab, plain.draft_ms_per_step, plain.draft_vs_full] == [None, None, None]
    assert [plain.draft_vs_headless, plain.vocabulary_share] == [None, None]


def test_near_ties_are_counted_apart_from_differences(rows):
    assert [(row.identical, row.near_ties) for row in rows.values()] == [(True, 0), (False, 0), (True, 1)]


def test_without_full_there_is_nothing_relative_to_it():
    one = [result(9, 4, 8, 40, 1.0, 0.5, 0, 0.5)]
    row = build_rows({"autoregressive": one, "in-context": one}, {"in-context": None}, [])[1]
    assert [row.speedup_vs_full, row.accept_vs_full, row.draft_vs_full, row.draft_vs_headless] == [None] * 4


@pytest.mark.parametrize(("parts", "quotient"), [((1, 2), 0.5), ((0, 2), 0.0), ((None, 2), None), ((1, 0), None)])
def test_a_ratio_without_a_denominator_is_none(parts, quotient):
    assert ratio(*parts) == quotient


def test_a_captured_step_hides_its_parts():
    captured = result(9, 4, 8, 400, 0.0, 0.0, 0.0, 0.0)
    captured.stats.seconds["step"] = 2.0
    plain = result(9, 8, 8, 0, 0.0, 4.0, 0.0, 0.0)
    rows = {row.vocab: row for row in build_rows({"autoregressive": [plain], "in-context": [captured]}, {}, [])}
    row = rows["in-context"]
    assert row.tokens_per_second == pytest.approx(8 / 2.0)
    assert [row.draft_ms_per_step, row.draft_vs_full, row.vocabulary_share] == [None, None, None]
