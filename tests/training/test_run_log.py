"""Budgets and restarts of a training run; its steps take no time here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nanospec.training.run_log import TimedRun, learning_rate_factor


class Counter:
    """What is trained: the number of its steps."""

    def __init__(self) -> None:
        self.value = 0
        self.progress: list[float] = []

    def state(self) -> dict[str, Any]:
        return {"value": self.value}

    def load(self, saved: dict[str, Any]) -> None:
        self.value = saved["value"]

    def step(self, progress: float) -> tuple[float, int]:
        self.value += 1
        self.progress.append(progress)
        return 1.0, 10

    def start(self, out: Path, minutes: float = 60.0) -> TimedRun:
        return TimedRun(out, minutes, self.state, self.load)


def test_a_new_run_resumes_where_the_last_one_stopped(tmp_path: Path) -> None:
    first = Counter()
    run = first.start(tmp_path / "new")
    run.run(first.step, max_steps=3)
    second = Counter()
    resumed = second.start(tmp_path / "new")
    assert second.value == 3
    assert (resumed.elapsed, resumed.num_steps, resumed.num_tokens) == (run.elapsed, 3, 30)
    resumed.run(second.step, max_steps=5)
    assert (second.value, resumed.num_steps, resumed.num_tokens) == (5, 5, 50)
    assert resumed.elapsed >= run.elapsed
    assert second.progress == [3 / 5, 4 / 5]


def test_progress_is_the_larger_share_of_time_and_steps(tmp_path: Path) -> None:
    run = Counter().start(tmp_path)
    run.elapsed, run.num_steps = run.budget / 4, 10
    assert [run.progress(max_steps) for max_steps in (None, 100, 20)] == [0.25, 0.25, 0.5]


def test_a_spent_budget_takes_no_more_steps(tmp_path: Path) -> None:
    counter = Counter()
    run = counter.start(tmp_path)
    run.elapsed = run.budget
    run.run(counter.step)
    assert counter.value == 0


@pytest.mark.parametrize("max_steps", [0, 2, 3])
def test_a_run_that_is_past_max_steps_takes_no_more(tmp_path: Path, max_steps: int) -> None:
    first, second = Counter(), Counter()
    first.start(tmp_path).run(first.step, max_steps=3)

    def must_not_run(progress: float) -> tuple[float, int]:
        raise AssertionError(f"a step ran past max_steps {max_steps}")

    second.start(tmp_path).run(must_not_run, max_steps=max_steps)
    assert second.value == 3


def test_the_learning_rate_warms_up_holds_and_falls_to_zero() -> None:
    table = {0.0: 0.01, 0.005: 0.51, 0.0099: 1.0, 0.3: 1.0, 0.5: 1.0, 0.75: 0.5, 1.0: 0.0}
    for progress, factor in table.items():
        assert learning_rate_factor(progress) == pytest.approx(factor)
