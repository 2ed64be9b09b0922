"""What the library refuses becomes one line on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

EXIT_BAD_INPUT = 2


@contextmanager
def one_line_errors(debug: bool) -> Iterator[None]:
    """Ends the command with "error: ..." and exit status 2; with `debug` the traceback is shown instead."""
    try:
        yield
    except BrokenPipeError:  # the reader of stdout left, as in `| head`: nothing to report
        raise
    except (ValueError, TypeError, NotImplementedError, OSError) as error:
        if debug:
            raise
        typer.echo(f"error: {one_line(error)}", err=True)
        raise typer.Exit(EXIT_BAD_INPUT) from None


def one_line(error: BaseException) -> str:
    """What an error says, for a terminal."""
    return printable(" ".join(str(error).split()))


def printable(text: str) -> str:
    """What a file says, for a terminal: control characters, which could move its cursor, become question marks."""
    return "".join(character if character.isprintable() else "?" for character in text)
