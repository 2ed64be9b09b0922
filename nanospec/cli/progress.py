"""Progress on stderr: bars where somebody watches; elsewhere, as in a log, a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

NUM_LINES = 10  # of work whose amount is known, one per equal part
LINE_EVERY_S = 60.0  # of work whose amount nobody knows
PATIENCE_S = 10.0  # work of unknown length that takes less is not worth a line


@contextmanager
def progress_bar(label: str, total: int, unit: str) -> Iterator[Callable[[], None]]:
    """Yields a function to call after each of `total` units of work."""
    if not sys.stderr.isatty():
        lines = _Lines(label, total)
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            lines.show(done, f"{done:,} of {total:,} {unit}")

        lines.say(f"{total:,} {unit} to go")
        yield advance
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda: progress.advance(task)


@contextmanager
def busy(label: str) -> Iterator[None]:
    """A spinner beside `label` for work of unknown length; where nobody watches, `label` once it takes long."""
    if sys.stderr.isatty():
        with Console(stderr=True).status(label):
            yield
        return
    timer = Timer(PATIENCE_S, _Lines(label, None).say, ["still at it"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def amount_bar(label: str, total: int | None, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function to call with how much of `total` is done (None: nobody knows how much there is) and how many
    units that were."""
    if not sys.stderr.isatty():
        lines = _Lines(label, total)

        def show(done: int, num_units: int) -> None:
            share = f"{100 * done / total:.0f} %, " if total else ""
            lines.show(done, f"{share}{num_units:,} {unit}")

        lines.say("begun")
        yield show
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done, num_units: progress.update(
            task, completed=done, description=f"{label}, {num_units:,} {unit}"
        )


class _Lines:
    """Lines of a log: one whenever a further tenth of `total` is done, where it is unknown one a minute."""

    def __init__(self, label: str, total: int | None) -> None:
        self.label, self.total = label, total
        self.begun = self.last = time.monotonic()
        self.num_parts = 0

    def show(self, done: int, text: str) -> None:
        if self._is_due(done):
            self.say(f"{text}, {(time.monotonic() - self.begun) / 60:.1f} min")

    def say(self, text: str) -> None:
        typer.echo(f"{self.label}: {text}", err=True)

    def _is_due(self, done: int) -> bool:
        now, before = time.monotonic(), self.num_parts
        if not self.total:
            is_due = now - self.last >= LINE_EVERY_S
            self.last = now if is_due else self.last
            return is_due
        self.num_parts = NUM_LINES * done // self.total
        return self.num_parts > before
