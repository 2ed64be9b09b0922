"""Texts to measure on: JSON lines of prompts, with their responses and tasks where the file has them."""

from __future__ import annotations

import lzma
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from nanospec.cli.prompts import text_of
from nanospec.coverage.documents import TextDocument
from nanospec.demo import DEMO_DIRECTORY
from nanospec.untrusted_files import expand_xz, parse_json, read_bytes

BUILT_IN_PROMPTS = DEMO_DIRECTORY / "prompts.jsonl"
MAX_BYTES = 2**29  # of a file, expanded: a million prompts with their responses

# What Spec-Bench counts as one task, multi-turn conversation: the eight categories of MT-Bench.
MT_BENCH = {"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"}


def read_documents(paths: Sequence[Path], limit: int | None = None, seed: int = 0) -> list[TextDocument]:
    """The records of JSON-lines files, plain or .xz, with `limit` so many of them drawn at random, in their order.

    A record has `prompt` or `turns`, of which the first counts, and maybe `response`, beside which the prompt may be
    empty, and `category`; without one its task is the name of the file.

    Raises ValueError naming file and line for a record that cannot be read, and when there is none;
    FileNotFoundError for a file that does not exist.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    documents = [document for path in paths for document in _read_file(path)]
    if not documents:
        raise ValueError(f"prompts must hold at least one record, got none in {', '.join(p.name for p in paths)}")
    if limit is None or limit >= len(documents):
        return documents
    drawn = np.random.default_rng(seed).permutation(len(documents))[:limit]
    return [documents[index] for index in sorted(drawn)]


def _read_file(path: Path) -> Iterator[TextDocument]:
    if not path.exists():
        raise FileNotFoundError(f"prompts must be a file of JSON lines, but {path} does not exist")
    try:
        text = read_bytes(path, MAX_BYTES)
        text = expand_xz(text, MAX_BYTES) if path.suffix == ".xz" else text
        lines = text.decode("utf-8-sig").split("\n")  # splitlines would also split inside a string
    except (ValueError, lzma.LZMAError) as error:
        raise ValueError(f"{path.name} must be UTF-8 text, plain or .xz: {error}") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _parse(line, f"{path.name}, line {number}", path.name.partition(".")[0])


def _parse(line: str, place: str, file_task: str) -> TextDocument:
    record = parse_json(line, f"{place}:")
    if not isinstance(record, dict):
        raise ValueError(f"{place}: must be a JSON object, got {type(record).__name__}")
    response, category = record.get("response"), record.get("category", file_task)
    is_untold = response is not None and record.get("prompt") == ""
    prompt = "" if is_untold else text_of(record, place)
    if response is not None and not (isinstance(response, str) and response.strip()):
        raise ValueError(f"{place}: response must be a non-empty string, got {reprlib.repr(response)}")
    if not isinstance(category, str) or not category:
        raise ValueError(f"{place}: category must be a non-empty string, got {reprlib.repr(category)}")
    task = "mt_bench" if "question_id" in record and category in MT_BENCH else category
    return TextDocument(prompt, response, task)
