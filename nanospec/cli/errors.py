"""What the library refuses, and memory that runs out, become one line on stderr."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import typer

EXIT_BAD_INPUT = 2
REFUSALS = (ValueError, TypeError, NotImplementedError, OSError)
REMEDIES = (
    "try a shorter context, fewer new tokens (--max-new-tokens), fewer sequences at once or a smaller type of numbers "
    "(--dtype bfloat16), as far as the command has them"
)
# Where in torch's sources a host's allocator gave up, and what a GPU's says of itself behind what was asked for.
_ALLOCATOR_DETAILS = re.compile(r"\[enforce fail at [^\]]*\](?: err == 0)?[. ]*| Including non-PyTorch memory.*")


@contextmanager
def one_line_errors(debug: bool) -> Iterator[None]:
    """Ends the command with "error: ..." and exit status 2; with `debug` the traceback is shown instead."""
    try:
        yield
    except BrokenPipeError:  # the reader of stdout left, as in `| head`: nothing to report
        raise
    except (*REFUSALS, MemoryError, RuntimeError) as error:
        if debug or not is_told(error):
            raise
        typer.echo(f"error: {one_line(error)}", err=True)
        raise typer.Exit(EXIT_BAD_INPUT) from None


def is_told(error: BaseException) -> bool:
    """Whether a line says all that there is to say; other errors are mistakes of ours."""
    return isinstance(error, REFUSALS) or is_out_of_memory(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a host or a GPU had no memory left. For a host's, torch has no class of its own."""
    if isinstance(error, MemoryError) or not isinstance(error, RuntimeError):
        return isinstance(error, MemoryError)
    from torch import OutOfMemoryError  # --help, where there is no such error, does without

    return isinstance(error, OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def one_line(error: BaseException) -> str:
    """What an error says, for a terminal; where memory ran out, what to try as well."""
    text = printable(" ".join(str(error).split()))
    if not is_out_of_memory(error):
        return text
    what = _ALLOCATOR_DETAILS.sub("", text).rstrip(". ")
    return f"out of memory{': ' if what else ''}{what}; {REMEDIES}"


def printable(text: str) -> str:
    """What a file says, for a terminal: control characters, which could move its cursor, become question marks."""
    return "".join(character if character.isprintable() else "?" for character in text)
