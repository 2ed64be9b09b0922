"""What every fuzz test shares: how many cases, which errors count as an answer, and an end to each case."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TypeVar

from hypothesis import HealthCheck, settings

Result = TypeVar("Result")
TYPED = (ValueError, TypeError, NotImplementedError, FileNotFoundError)
FACTOR = int(os.environ.get("NANOSPEC_FUZZ_FACTOR", "1"))  # a soak run takes more cases, and other ones
SECONDS = 60  # of one case, which takes a hundredth of one: only a hang gets there
LONGEST_ERROR = 5000  # characters; what a file holds must not flood a log


class HangError(BaseException):
    """Not an Exception: nothing that is tested may catch it."""


def cases(count: int) -> settings:
    return settings(
        max_examples=count * FACTOR, deadline=None, derandomize=FACTOR == 1, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def result_or_refusal(read: Callable[[], Result]) -> Result | Exception:
    """What `read` returns, or the typed error that it raises. Other errors are raised here, and so is `HangError`."""
    previous = signal.signal(signal.SIGALRM, _hang)
    signal.alarm(SECONDS)
    try:
        return read()
    except TYPED as error:
        if not 0 < len(str(error)) < LONGEST_ERROR:
            raise AssertionError(f"an error must say what is wrong in a few lines, got {str(error)[:99]!r}") from error
        return error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def _hang(*details: object) -> None:
    raise HangError(f"one case took longer than {SECONDS} seconds")
