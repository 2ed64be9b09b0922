"""Progress on stderr, only where somebody watches: nothing is written when stderr is not a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(label: str, total: int) -> Iterator[Callable[[], None]]:
    """Yields a function to call after each of `total` pieces of work."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda: progress.advance(task)


@contextmanager
def busy(label: str) -> Iterator[None]:
    """A spinner beside `label` for work of unknown length."""
    if not sys.stderr.isatty():
        yield
        return
    with Console(stderr=True).status(label):
        yield


@contextmanager
def amount_bar(label: str, total: int | None, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function to call with how much of `total` is done (None: nobody knows how much there is) and how many
    units that were."""
    if not sys.stderr.isatty():
        yield lambda done, num_units: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done, num_units: progress.update(
            task, completed=done, description=f"{label}, {num_units:,} {unit}"
        )
