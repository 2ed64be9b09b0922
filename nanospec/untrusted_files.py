"""Text and JSON that anyone may have written: bounded before it is read, and strict where Python is lenient."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, NoReturn

MAX_JSON_BYTES = 2**25  # the index of a model of 700 billion parameters has 2^23
MAX_EXPANSION = 64  # bytes per byte of xz; text gives 4 to 10
XZ_MEMORY = 2**27  # of the decompressor; the strongest preset wants half
MAX_DIGITS = 100  # of a number; every float stays convertible

SHOWN_NAMES, SHOWN_LENGTH = 8, 80  # in an error


def shown_name(name: str) -> str:
    """A name that a file gives, as errors show it: 80 characters at most."""
    return name if len(name) <= SHOWN_LENGTH else name[: SHOWN_LENGTH - 3] + "..."


def shown_names(names: Iterable[str]) -> list[str]:
    """The first eight names, in order, as errors show them."""
    return [shown_name(name) for name in sorted(names)[:SHOWN_NAMES]]


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """What a regular file holds. FileNotFoundError for a missing one, ValueError for a pipe, a device or a directory,
    or for more than `max_bytes`, of which no more are read."""
    if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
        raise ValueError(f"{path} must be a regular file")
    with path.open("rb") as file:
        return read_stream(file, max_bytes, str(path))


def read_stream(file: IO[bytes], max_bytes: int, source: str) -> bytes:
    """As `read_bytes`, of an open file."""
    content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{source} must hold at most {max_bytes} bytes, got more")
    return content


def expand_xz(content: bytes, max_bytes: int) -> bytes:
    """What one xz stream holds. Raises LZMAError for a damaged one, ValueError for one that is cut off, or that expands
    to more than `max_bytes` or to more than `MAX_EXPANSION` times its size, of which no more is made."""
    limit = min(max_bytes, MAX_EXPANSION * len(content))
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)
    expanded = decompressor.decompress(content, max_length=limit)
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError(f"it must be one xz stream that expands to at most {limit} bytes")
    return expanded


def read_json_file(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The value in a JSON file. Raises as `read_bytes` and `parse_json`."""
    content = read_bytes(path, max_bytes)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be JSON in UTF-8, got {error}") from None
    return parse_json(text, str(path))


def parse_json(text: str, source: str) -> Any:
    """The value that a JSON text says.

    Raises ValueError naming `source` for what is no JSON (NaN and infinities are none), for keys that come twice, for
    numbers of over a hundred digits or beyond floating point, for nesting that Python cannot follow and for halves of
    surrogate pairs, which no encoding can write.
    """
    try:
        content = json.loads(
            text, object_pairs_hook=_distinct, parse_constant=_no_constant, parse_int=_int, parse_float=_float
        )
        if "\\u" in text:
            json.dumps(content, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"{source} must be JSON, got {text[max(error.pos - 30, 0) :][:60]!r} ({error})") from None
    except RecursionError:
        raise ValueError(f"{source} must be JSON that is not nested so deeply") from None
    except UnicodeEncodeError as error:
        raise ValueError(f"{source} must hold whole characters, got half of one ({error.reason})") from None
    except ValueError as error:
        raise ValueError(f"{source} must be JSON, {error}") from None
    return content


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"whose keys are distinct, got {key[:60]!r} twice")
    return content


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"which has no {name}")


def _int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"with numbers of up to {MAX_DIGITS} digits, got one of {len(digits)}")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), -float("inf")):
        raise ValueError(f"with numbers that floating point can hold, got {digits[:60]}")
    return value
