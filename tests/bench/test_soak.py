"""A soak of the tiny pair finds nothing; with a mistake put in it finds that."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from bench.soak import __main__ as command
from bench.soak import run
from bench.soak.memory import FEWEST_SAMPLES, fit_slope
from bench.soak.plans import STOP_STRINGS, Mix, Plan
from bench.soak.replay import difference
from bench.soak.rounds import Outcome
from bench.soak.run import SoakReport, soak
from nanospec import GenerationResult, SpeculativeDecoder, TreeShape
from nanospec.batch.engine import BatchEngine
from nanospec.stats import GenerationStats
from tests.tiny_pair import VOCAB_SIZE, tiny_drafter, tiny_target

POLICIES = ("in-context", "hybrid:5", "hybrid:5+prior", "static:7", "full")
FREQUENT = torch.randperm(VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
MIX = Mix(0, range(VOCAB_SIZE), VOCAB_SIZE, POLICIES, most_batch=8, most_prompt=90, most_output=16)
SHORT = replace(MIX, policies=("in-context",), most_batch=3, most_prompt=6, most_output=3, most_in_round=5)
STATS = GenerationStats("full", "eagle", "cpu", "float64", TreeShape(1, 1, 2))


class Letters:
    """A tokenizer whose tokens are letters."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) % VOCAB_SIZE for letter in text]}

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(chr(97 + token_id % 26) for token_id in token_ids)


def load() -> SpeculativeDecoder:
    target = tiny_target(seed=4)
    drafter, tree = tiny_drafter(target, 2, std=0.02), TreeShape(3, 3, 8)
    decoder = SpeculativeDecoder(target, drafter, "in-context", tree, Letters(), capacity=30, frequent_ids=FREQUENT)
    decoder.eos_ids = frozenset([9])
    return decoder


def last(reports) -> SoakReport:
    *_, report = reports
    return report


def test_two_hundred_requests_in_every_mixture_are_their_serial_replay_and_leave_nothing(monkeypatch):
    monkeypatch.setenv("NANOSPEC_CHECKS", "1")
    report = last(soak(load(), load(), MIX, 200, sample_every=12))
    assert report.differences == []
    assert {name: slope.verdict for name, slope in report.slopes.items()} == dict.fromkeys(report.slopes, "flat")
    assert report.is_complete
    assert report.is_good
    counts = report.counts
    assert counts["whole"] + counts["left early"] + counts["not begun"] == counts["requests"] == 200
    assert min(counts[f"by {way}"] for way in ("batch", "generate", "stream", "generate_many")) > 5
    assert min(counts["left early"], counts["not begun"]) > 5
    assert counts["replayed"] > 150


def test_a_mix_holds_every_kind_of_request_and_can_be_made_again():
    rounds = list(MIX.rounds(200))
    plans = [plan for made in rounds for plan in made.plans]
    assert [plan.number for plan in plans] == list(range(200))
    assert rounds == list(MIX.rounds(200))
    assert plans[:150] == [plan for made in MIX.rounds(150) for plan in made.plans]
    assert plans != [plan for made in replace(MIX, seed=1).rounds(200) for plan in made.plans]
    assert {made.policy for made in rounds} == set(POLICIES)
    assert {made.is_many for made in rounds} == {made.ends_after is None for made in rounds} == {True, False}
    assert {made.max_batch for made in MIX.rounds(1000)} == set(range(1, 9))
    lengths = {len(plan.input_ids) for plan in plans}
    assert (min(lengths), max(lengths)) == (1, 88)
    assert len(MIX.longest().input_ids) == 90
    assert {plan.settings["max_new_tokens"] for plan in plans} == set(range(1, 17))
    assert {plan.way for plan in plans} == {"batch", "generate", "stream"}
    assert {0, 1, None} < {plan.leaves_after for plan in plans}
    assert {stop for plan in plans for stop in plan.settings.get("stop_strings", ())} == set(STOP_STRINGS)
    assert {"temperature" in plan.settings for plan in plans} == {True, False}


def test_weights_that_change_under_the_requests_are_found():
    soaked = load()
    soaked.target.model.lm_head.weight.data[:20] += 0.05
    report = last(soak(soaked, load(), SHORT, 25))
    assert report.counts["different"] == len(report.differences) > 0
    assert not report.is_good


def test_what_engines_and_requests_leave_in_memory_is_found(monkeypatch):
    close, run_round, kept = BatchEngine.close, run.run_round, []

    def close_and_keep(engine: BatchEngine) -> None:
        kept.append(engine._rows.target.cache.buffer)
        close(engine)

    def run_and_keep(*arguments):
        kept.append(run_round(*arguments))
        return kept[-1]

    monkeypatch.setattr(BatchEngine, "close", close_and_keep)
    monkeypatch.setattr(run, "run_round", run_and_keep)
    report = last(soak(load(), load(), SHORT, 40, sample_every=1))
    assert {name: report.slopes[name].verdict for name in ("python", "tensors")} == {
        "python": "grows",
        "tensors": "grows",
    }
    assert not report.is_good
    assert report.counts["different"] == 0


def result(token_ids: list[int], text: str, reason: str = "length") -> GenerationResult:
    return GenerationResult(token_ids, text, reason, STATS)


ALONE = result([1, 2, 3], "abc")


@pytest.mark.parametrize(
    ("is_whole", "token_ids", "text", "found", "message"),
    [
        (True, [1, 2, 3], "abc", result([1, 2, 3], "abc"), None),
        (True, [1, 2, 3], "abc", None, None),
        (True, [1, 2], "ab", result([1, 2], "ab"), "token 2 is nothing, alone 3"),
        (True, [1, 4, 3], "abc", None, "token 1 of the pieces is 4, alone 2"),
        (True, [1, 2, 3], "ab", None, "text of the pieces is 'ab', alone 'abc'"),
        (True, [1, 2, 3], "abc", result([1, 2, 3], "abc", "eos"), "reason and text of the end are .*'eos'"),
        (True, [1, 2], "abc", result([1, 2, 3], "abc"), "token 2 of the pieces is nothing, alone 3"),
        (False, [1, 2], "ab", None, None),
        (False, [], "", None, None),
        (False, [1, 3], "ac", None, "token 1 of what came before it left is 3, alone 2"),
        (False, [1, 2, 3, 4], "abc", None, "token 3 of what came before it left is 4, alone nothing"),
        (False, [1, 2], "b", None, "text 'b' before it left, alone 'abc'"),
    ],
)
def test_what_is_different_is_named(is_whole, token_ids, text, found, message):
    outcome = Outcome(Plan(0, [5], {}, "batch", None, 0), is_whole, token_ids, text, 1, found)
    problem = difference(outcome, ALONE)
    assert (problem is None) == (message is None)
    if message is not None:
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(problem)


def test_a_slope_is_that_of_least_squares_and_is_judged_beside_its_error():
    assert fit_slope([(0, 5), (1, 7), (2, 9)], bound=1.0)[:2] == (2.0, 0.0)
    steady = fit_slope([(0, 3), (1, 0), (2, 3), (3, 0), (4, 3), (5, 0)], bound=-1.0)
    assert steady.bytes_per_request == pytest.approx(-9 / 35)
    assert steady.error == pytest.approx((((27 / 2) - 81 / 70) / 4 / 17.5) ** 0.5)
    assert steady.verdict == "flat"  # above its bound, but by less than what the points scatter
    rising = [(place, 10 * place) for place in range(FEWEST_SAMPLES)]
    assert fit_slope(rising, bound=9.0).verdict == "grows"
    assert fit_slope(rising, bound=11.0).verdict == "flat"
    assert fit_slope(rising[1:], bound=9.0).verdict == "not judged"


def invoke(*options: str) -> Result:
    return CliRunner().invoke(command.app, ["--vocab", "in-context", "--max-prompt-tokens", "5", *options])


def test_the_command_writes_what_it_found_and_its_exit_status_says_it(tmp_path: Path, monkeypatch):
    loaded = iter([load(), load(), load(), load()])
    monkeypatch.setattr(command, "load_decoder", lambda *arguments, **options: next(loaded))
    options = "--requests", "12", "--max-new-tokens", "3", "--out", str(tmp_path)
    good = invoke(*options)
    assert good.exit_code == 0, good.output
    assert good.output.splitlines()[-1] == "good, memory not judged: python, tensors, resident"
    report = json.loads((tmp_path / command.JSON_NAME).read_text())
    assert (report["verdict"], report["is_complete"], report["counts"]["requests"]) == ("good", True, 12)
    assert report["settings"]["policies"] == ["in-context"]

    def wrong(*arguments):
        return "token 0 is 1, alone 2"

    monkeypatch.setattr(run, "difference", wrong)
    bad = invoke(*options)
    assert (bad.exit_code, bad.output.splitlines()[-1]) == (1, "BAD")
    assert "token 0 is 1, alone 2" in bad.output
    assert json.loads((tmp_path / command.JSON_NAME).read_text())["verdict"] == "bad"


def test_a_time_limit_ends_a_soak_between_two_rounds(monkeypatch):
    report = last(soak(load(), load(), SHORT, 100, limit_s=0))
    assert (report.counts["rounds"], report.is_complete) == (1, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--minutes", "0"), "minutes must be above 0, got 0"),
        (("--vocab", ","), "vocab must name a draft vocabulary, got ','"),
        (("--max-prompt-tokens", "128"), "max-prompt-tokens must be below the context window of 128, got 128"),
    ],
)
def test_bad_options_end_with_one_line(options, message, monkeypatch):
    monkeypatch.setattr(command, "load_decoder", lambda *arguments, **options: load())
    run = invoke(*options)
    assert (run.exit_code, run.output) == (2, f"error: {message}\n")
