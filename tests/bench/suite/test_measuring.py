from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from bench.suite.decoded import Decoded
from bench.suite.measuring import check_answers, measure, num_runs, results_of
from bench.suite.prompts import SuitePrompt
from nanospec.coverage.state_file import StateFile
from nanospec.result import Candidates

NUM_PROMPTS, NAMES = 3, ("autoregressive", "full", "in-context")
PROMPTS = [SuitePrompt(torch.tensor([[number]]), "qa") for number in range(NUM_PROMPTS)]
ORDER = [2, 0, 1]
MAX_NEW_TOKENS = 64
TOP, BELOW, FAR = 7, 8, 9  # the target's first choice, one below it by a near-tie in bfloat16, and one far below


class Rows:
    """Fake rows that note every call; `break_after` of them the process is killed."""

    def __init__(self, break_after=None, answers=()):
        self.calls, self.break_after, self.answers = [], break_after, dict(answers)

    def decoding(self):
        return {name: self._decode(name) for name in NAMES}

    def _decode(self, name):
        def decode(input_ids, max_new_tokens):
            if len(self.calls) == self.break_after:
                raise KeyboardInterrupt
            self.calls.append((name, int(input_ids), max_new_tokens))
            return Decoded(self.answers.get(name, [TOP, TOP]), 2.0, 1.0, 1, 1, 1)

        return decode


def run(rows, state):
    steps = []
    measure(rows.decoding(), PROMPTS, ORDER, MAX_NEW_TOKENS, state, lambda: steps.append(1))
    assert len(steps) == num_runs(len(NAMES), NUM_PROMPTS)
    return rows.calls


def plain_again(number):
    best = Candidates([TOP, BELOW, FAR], [16.0, 15.9, 1.0])
    return SimpleNamespace(token_ids=[TOP, TOP], candidates=[best, best])


def test_rows_rotate_from_prompt_to_prompt_behind_a_short_run_of_each():
    calls = run(Rows(), StateFile(None, {}, key="run"))
    assert calls[:3] == [(name, 2, 16) for name in NAMES]
    assert calls[3:] == [
        (name, number, MAX_NEW_TOKENS)
        for number, names in zip(ORDER, (NAMES, NAMES[1:] + NAMES[:1], NAMES[2:] + NAMES[:2]), strict=True)
        for name in names
    ]


@pytest.mark.parametrize("break_after", range(4, 12))
def test_a_run_that_was_killed_goes_on_where_it_stopped(tmp_path, break_after):
    path = tmp_path / "state.jsonl"
    killed = Rows(break_after)
    with pytest.raises(KeyboardInterrupt):
        run(killed, StateFile(path, {}, key="run"))
    done = killed.calls[3:]
    assert len(path.read_text().splitlines()) == 1 + len(done)
    calls = run(Rows(), StateFile(path, {}, key="run"))[3:]
    assert len(calls) + len(done) == len(NAMES) * NUM_PROMPTS
    assert len({*calls, *done}) == len(NAMES) * NUM_PROMPTS


def test_a_run_that_is_complete_decodes_nothing_again(tmp_path):
    state = StateFile(tmp_path / "state.jsonl", {}, key="run")
    run(Rows(), state)
    assert run(Rows(break_after=0), StateFile(tmp_path / "state.jsonl", {}, key="run")) == []
    assert results_of("full", [0, 2], state) == [Decoded([TOP, TOP], 2.0, 1.0, 1, 1, 1)] * 2


def test_a_near_tie_is_no_error_and_anything_else_is(tmp_path):
    state = StateFile(tmp_path / "state.jsonl", {}, key="run")
    run(Rows(answers={"full": [TOP, BELOW], "in-context": [FAR, TOP]}), state)
    found = check_answers(NAMES, ORDER, state, plain_again, torch.bfloat16)
    assert [(difference.vocab, difference.prompt, difference.near_tie) for difference in found] == [
        (name, number, name == "full") for number in ORDER for name in NAMES[1:]
    ]
    again = StateFile(tmp_path / "state.jsonl", {}, key="run")
    assert check_answers(NAMES, ORDER, again, pytest.fail, torch.bfloat16) == found


def test_in_float32_there_is_no_near_tie(tmp_path):
    state = StateFile(None, {}, key="run")
    run(Rows(answers={"full": [TOP, BELOW]}), state)
    assert not any(found.near_tie for found in check_answers(NAMES, ORDER, state, plain_again, torch.float32))
