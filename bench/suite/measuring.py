"""Every row on every prompt, interleaved, each result kept at once, each answer held against plain decoding's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from bench.suite.decoded import Decode, Decoded, from_record
from bench.suite.prompts import SuitePrompt
from nanospec.cli.measure import WARM_UP_TOKENS, Difference, find_differences
from nanospec.coverage.state_file import StateFile
from nanospec.result import GenerationResult

Rerun = Callable[[int], GenerationResult]  # number of a prompt -> plain decoding of it once more, with candidates


def num_runs(num_rows: int, num_prompts: int) -> int:
    """How often `measure` advances."""
    return num_rows * num_prompts


def measure(
    rows: Mapping[str, Decode],
    prompts: Sequence[SuitePrompt],
    order: Sequence[int],
    max_new_tokens: int,
    state: StateFile,
    advance: Callable[[], None],
) -> None:
    """What `state` lacks of every row on every prompt: one record each, as soon as it is there.

    Prompts in `order`; the order of the rows rotates from prompt to prompt. All rows are warmed up before the
    first run.
    """
    names, is_warm = list(rows), False
    for turn, number in enumerate(order):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            if run_key(number, name) not in state.records:
                if not is_warm:
                    _warm_up(rows, prompts[order[0]], max_new_tokens)
                    is_warm = True
                decoded = rows[name](prompts[number].input_ids, max_new_tokens)
                record = {"run": run_key(number, name), "prompt": number, "row": name, "task": prompts[number].task}
                state.add(record | decoded._asdict())
            advance()


def check_answers(
    names: Sequence[str], order: Sequence[int], state: StateFile, rerun: Rerun, dtype: torch.dtype
) -> list[Difference]:
    """First difference of every row from the first one, plain decoding, prompt by prompt; kept in `state`."""
    differences = []
    for number in order:
        key = f"{number}/check"
        if key not in state.records:
            found = _check_prompt(names, number, state, rerun, dtype)
            state.add({"run": key, "differences": [difference._asdict() for difference in found]})
        differences += [Difference(**difference) for difference in state.records[key]["differences"]]
    return differences


def results_of(name: str, numbers: Sequence[int], state: StateFile) -> list[Decoded]:
    """What a row made of these prompts."""
    return [from_record(state.records[run_key(number, name)]) for number in numbers]


def run_key(number: int, name: str) -> str:
    return f"{number}/{name}"


def _check_prompt(
    names: Sequence[str], number: int, state: StateFile, rerun: Rerun, dtype: torch.dtype
) -> list[Difference]:
    answers: dict[str, Any] = {
        name: [SimpleNamespace(token_ids=results_of(name, [number], state)[0].token_ids)] for name in names
    }
    found = find_differences(answers, lambda _: rerun(number), dtype)
    return [difference._replace(prompt=number) for difference in found]


def _warm_up(rows: Mapping[str, Decode], prompt: SuitePrompt, max_new_tokens: int) -> None:
    for decode in rows.values():
        decode(prompt.input_ids, min(WARM_UP_TOKENS, max_new_tokens))
