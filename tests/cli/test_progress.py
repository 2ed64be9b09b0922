from __future__ import annotations

import pytest

from nanospec.cli import progress
from nanospec.cli.progress import amount_bar, busy, progress_bar


class Impatient:
    """A timer whose time is up at once."""

    def __init__(self, seconds, call, arguments):
        self.call, self.arguments = call, arguments

    def start(self):
        self.call(*self.arguments)

    def cancel(self):
        pass


@pytest.fixture
def clock(monkeypatch):
    """Seconds, which the test sets."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_terminal_gets_bars_and_stdout_nothing(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with busy("loading"), progress_bar("comparing", 2, "runs") as advance:
        advance()
        advance()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "comparing" in captured.err


def test_a_log_gets_a_line_per_tenth_with_what_is_done_and_the_minutes(capsys, clock):
    with progress_bar("comparing", 40, "runs") as advance:
        for _ in range(40):
            clock[0] += 6.0
            advance()
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert lines[:2] == ["comparing: 40 runs to go", "comparing: 4 of 40 runs, 0.4 min"]
    assert lines[-1] == "comparing: 40 of 40 runs, 4.0 min"
    assert len(lines) == 11


def test_an_amount_in_a_log_has_its_share_and_its_units(capsys, clock):
    with amount_bar("counting", 200, "texts") as show:
        show(19, 1)
        clock[0] = 90.0
        show(170, 12_000)
    assert capsys.readouterr().err.splitlines() == ["counting: begun", "counting: 85 %, 12,000 texts, 1.5 min"]


def test_an_unknown_amount_in_a_log_gets_a_line_a_minute(capsys, clock):
    with amount_bar("counting", None, "texts") as show:
        for count in range(10):
            clock[0] += 25.0
            show(count, count)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "counting: begun", "counting: 2 texts, 1.2 min", "counting: 5 texts, 2.5 min", "counting: 8 texts, 3.8 min",
    ]  # fmt: skip


def test_work_of_unknown_length_is_named_in_a_log_once_it_takes_long(capsys, monkeypatch):
    with busy("loading"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "Timer", Impatient)
    with busy("loading"):
        pass
    assert capsys.readouterr().err == "loading: still at it\n"
