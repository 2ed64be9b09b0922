"""An answer as it grows: plain text where nobody watches, on a terminal with a line of figures below."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol
from unicodedata import category

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

if TYPE_CHECKING:
    from nanospec.stats import GenerationStats

# Control characters, surrogates, private use, what is no character yet, separators of lines and of paragraphs.
UNSHOWN = ("Cc", "Cs", "Co", "Cn", "Zl", "Zp")
BIDI_CONTROLS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
MIN_SECONDS = 0.05  # between two pictures of a terminal
NUM_ROWS_BELOW = 3  # of the terminal that the unfinished line leaves free


class Show(Protocol):
    """Takes the next piece of an answer and the figures so far."""

    def __call__(self, text: str, stats: GenerationStats) -> None: ...


class PlainView:
    """Answers on stdout, each ended by a line break; figures and what else is said on stderr."""

    @contextmanager
    def answering(self) -> Iterator[Show]:
        """Shows one answer: yields what takes its pieces. However it ends, what was said is shown, and what it cost."""
        figures: list[str] = []

        def show(text: str, stats: GenerationStats) -> None:
            typer.echo(text, nl=False)
            figures[:] = [chat_figures(stats)]

        try:
            yield show
        finally:
            if figures:
                typer.echo()
                self.say(figures[0])

    def say(self, text: str) -> None:
        """A line beside the answers."""
        typer.echo(text, err=True)


class LiveView:
    """On a terminal: lines that are whole scroll away, the one that grows stays above the figures."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def answering(self) -> Iterator[Show]:
        """As `PlainView.answering`."""
        tail, figures, shown_at = "", "", 0.0
        live = Live(console=self.console, auto_refresh=False, transient=True)

        def show(text: str, stats: GenerationStats) -> None:
            nonlocal tail, figures, shown_at
            tail, figures = self._scroll(tail + printable_text(text)), chat_figures(stats)
            if time.monotonic() - shown_at > MIN_SECONDS:
                live.update(Group(Text(tail), Text(figures, "dim", no_wrap=True)), refresh=True)
                shown_at = time.monotonic()

        try:
            with live:
                yield show
        finally:
            if figures:
                self.console.print(Text(tail), soft_wrap=True)
                self.say(figures)

    def say(self, text: str) -> None:
        """A line beside the answers."""
        self.console.print(Text(text, "dim"), soft_wrap=True)

    def _scroll(self, text: str) -> str:
        """Prints the lines of `text` that are whole, and of the last one the rows that the terminal has no room for;
        returns the rest."""
        *lines, tail = text.split("\n")
        rows = Text(tail).wrap(self.console, self.console.width)
        if len(rows) > max(1, self.console.height - NUM_ROWS_BELOW):
            lines += [row.plain for row in rows[:-1]]
            tail = rows[-1].plain
        for line in lines:
            self.console.print(Text(line), soft_wrap=True)
        return tail


def view_of_terminal() -> PlainView | LiveView:
    """The view for what stdout is."""
    return LiveView(Console()) if sys.stdout.isatty() else PlainView()


def chat_figures(stats: GenerationStats) -> str:
    """What an answer cost, in a row of a terminal; it may not be over yet."""
    return (
        f"[{stats.new_tokens:,} tokens, {stats.tokens_per_second:.1f} tokens/s, "
        f"{stats.mean_accept_length:.2f} per pass, {stats.mean_active_vocab:,.0f} rows, "
        f"reused {stats.cached_tokens:,} of {stats.prompt_tokens:,}"
        f"{'' if stats.lossless else ', lossy acceptance'}]"
    )


def printable_text(text: str) -> str:
    """What a model says, for a terminal: what moves its cursor or turns its lines around becomes a question mark."""
    return "".join(character if is_harmless(character) else "?" for character in text)


def is_harmless(character: str) -> bool:
    """Spaces of all widths are, and joiners, which emoji and several scripts are written with."""
    return character in "\n\t" or not (character in BIDI_CONTROLS or category(character) in UNSHOWN)
