"""Names of keyword arguments: one that does not exist is refused with those that do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

_MIN_BEGINNING = 3  # letters by which a longer or shorter name counts as meant


def check_names(what: str, given: Iterable[str], known: Sequence[str]) -> None:
    """TypeError for the first of `given` that is not `known`: lists `known`, and names the one closest to it, if any.

    A name that begins another comes before one that looks like it: "stop" means "stop_strings", not "top_p".
    """
    for name in given:
        if name not in known:
            meant = _meant(name, known)
            hint = "" if meant is None else f": did you mean {meant!r}?"
            raise TypeError(f"{what} must be among {', '.join(known)}, got {name!r}{hint}")


def _meant(name: str, known: Sequence[str]) -> str | None:
    if len(name) >= _MIN_BEGINNING:
        for candidate in known:
            if candidate.startswith(name) or name.startswith(candidate):
                return candidate
    return next(iter(get_close_matches(name, known, n=1)), None)
