"""Prompts to compare on: JSON lines with `prompt`, or with `turns` (Spec-Bench; the first turn)."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from nanospec.untrusted_files import parse_json, read_stream, shown_names

MAX_PROMPT_BYTES = 2**26  # of a file: a hundred prompts of 100,000 tokens each take half


class Prompt(NamedTuple):
    """Text of a prompt, and the place that an error names: file and line, or the number of a built-in one."""

    text: str
    place: str


def read_prompts(path: Path | None, limit: int | None = None) -> list[Prompt]:
    """The first `limit` prompts of a file, of the built-in ones when `path` is None. Blank lines are skipped.

    Raises ValueError naming file and line for a line that cannot be read, or when there is no prompt;
    FileNotFoundError when there is no such file.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    source = files("nanospec") / "demo" / "prompts.jsonl" if path is None else path
    try:
        lines = read_text(source).split("\n")  # splitlines would also split inside a string
    except FileNotFoundError:
        raise FileNotFoundError(f"prompts must be a file of JSON lines, but {source} does not exist") from None
    place = "built-in prompt" if path is None else f"{source.name}, line"
    prompts = list(islice(_parse(lines, place), limit))
    if not prompts:
        raise ValueError(f"{source.name} must hold at least one prompt, got none")
    return prompts


def read_text(path: Path | Traversable) -> str:
    """The text of a prompt file or a pipe, without a byte order mark.

    Raises ValueError for more than `MAX_PROMPT_BYTES`, for what is no UTF-8 and for NUL, which no text holds; OSError
    for what cannot be opened.
    """
    with path.open("rb") as file:
        content = read_stream(file, MAX_PROMPT_BYTES, path.name)
    if b"\0" in content:
        raise ValueError(f"{path.name} must be UTF-8 text, got a NUL byte at position {content.index(0)}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} must be UTF-8 text: {error}") from None


def _parse(lines: Iterable[str], place: str) -> Iterator[Prompt]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = parse_json(line, f"{place} {number}:")
        yield Prompt(text_of(record, f"{place} {number}"), f"{place} {number}")


def text_of(record: Any, place: str) -> str:
    """The prompt of a record read at `place`. Raises ValueError naming the place for a record without one."""
    if not isinstance(record, dict):
        raise ValueError(f"{place}: must be a JSON object, got {type(record).__name__}")
    if "prompt" in record:
        field, prompt = "prompt", record["prompt"]
    elif "turns" in record:
        turns = record["turns"]
        field, prompt = "the first of turns", turns[0] if isinstance(turns, list) and turns else turns
    else:
        raise ValueError(f"{place}: must have `prompt` or `turns`, got the keys {shown_names(record)}")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"{place}: {field} must be a non-empty string, got {reprlib.repr(prompt)}")
    return prompt
