"""Texts of a corpus one by one, from plain or compressed lines: what is read is never held as a whole."""

from __future__ import annotations

import codecs
import gzip
import lzma
import reprlib
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from nanospec.calibration.line_cuts import NO_CUTS, LineCuts
from nanospec.untrusted_files import parse_json, shown_names

STANDARD_INPUT = "-"
FORMAT_OF = {".txt": "text", ".jsonl": "jsonl"}
FORMATS = tuple(FORMAT_OF.values())
COMPRESSIONS = (".xz", ".gz")
MAX_LINE = 1 << 20  # bytes of plain text that are held at once
MAX_RECORD = 1 << 26  # of a line of JSON
# What the readers raise for compressed files that are damaged or end early.
_DAMAGED = (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError)


class MissingField(ValueError):
    """A record has texts elsewhere, if it has any."""


class TextSource:
    """The texts of `corpus`, a file or "-" for standard input; .xz and .gz are decompressed. A context manager.

    format  "text": plain lines. "jsonl": one JSON object per line, whose `field` is a string or a list of them.
            None: as the name says (.txt, .jsonl), text for standard input

    Raises FileNotFoundError; ValueError for an unknown format or a name that tells none.
    """

    def __init__(self, corpus: str, format: str | None = None, field: str = "response") -> None:
        path = Path(corpus)
        self.name, self.field = path.name, field
        self.format = _checked_format(path, format)
        self._raw: IO[bytes]
        self.total_bytes: int | None = None
        if corpus == STANDARD_INPUT:
            self.name, self._raw = "standard input", sys.stdin.buffer
        else:
            if not path.is_file():
                raise FileNotFoundError(f"corpus must be a file or '-', got {corpus!r}")
            self._raw, self.total_bytes = path.open("rb"), path.stat().st_size
        self._stream = _decompressed(self._raw, path.suffix)

    def __enter__(self) -> TextSource:
        return self

    def __exit__(self, *details: object) -> None:
        if self._raw is not sys.stdin.buffer:
            self._raw.close()

    @property
    def bytes_read(self) -> int:
        """Of the file as it lies on the disk, compressed or not."""
        return self._raw.tell() if self.total_bytes is not None else 0

    def texts(self, cuts: LineCuts = NO_CUTS) -> Iterator[str]:
        """The texts, once; plain lines in pieces that begin where `cuts` allows it, or after 2^20 characters. Raises
        ValueError naming the corpus, and the line where there is one, for what is damaged, is not UTF-8 or lacks the
        field."""
        try:
            yield from _joined_lines(self._stream, cuts) if self.format == "text" else self._fields()
        except _DAMAGED as error:
            raise ValueError(f"{self.name} must be a whole compressed file: {error}") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.name} must be UTF-8 text: {error}") from None

    def _fields(self) -> Iterator[str]:
        number = 0
        while line := self._stream.readline(MAX_RECORD + 1):
            number += 1
            place = f"{self.name}, line {number}"
            if len(line) > MAX_RECORD:
                raise ValueError(f"{place}: must have at most {MAX_RECORD} bytes, got more")
            if line.strip():
                yield from _strings(parse_json(_decoded(line, number, place), f"{place}:"), self.field, place)


def _checked_format(path: Path, format: str | None) -> str:
    if format is not None:
        if format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
        return format
    if str(path) == STANDARD_INPUT:
        return "text"
    suffix = Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix
    if suffix not in FORMAT_OF:
        raise ValueError(
            f"format must be given, one of {', '.join(FORMATS)}, for a corpus that does not end in "
            f"{' or '.join(FORMAT_OF)}, compressed or not, got {path.name}"
        )
    return FORMAT_OF[suffix]


def _decompressed(raw: IO[bytes], suffix: str) -> IO[bytes]:
    if suffix == ".xz":
        return lzma.open(raw)
    return gzip.open(raw) if suffix == ".gz" else raw  # type: ignore[return-value]  # it reads bytes


def _decoded(line: bytes, number: int, place: str) -> str:
    try:
        return (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: must be UTF-8 text: {error}") from None


def _joined_lines(stream: IO[bytes], cuts: LineCuts) -> Iterator[str]:
    """Lines with their line breaks, each with those after it that it may not be cut from: blank or indented ones, and
    more by `cuts`.

    A piece of `MAX_LINE` characters ends with its line, or within one that is longer. Example, with both cuts:
    "a\\n\\n b\\nc" gives "a\\n\\n b\\n" and "c".
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    piece, begins_line = "", True
    while line := stream.readline(MAX_LINE):
        text = decoder.decode(line)
        may_cut = begins_line and not text[:1].isspace() and cuts.may_cut_after(piece)
        if piece and (len(piece) >= MAX_LINE or may_cut):
            yield piece
            piece = ""
        piece, begins_line = piece + text, line.endswith(b"\n")
    decoder.decode(b"", final=True)
    if piece:
        yield piece


def _strings(record: Any, field: str, place: str) -> Iterator[str]:
    if not isinstance(record, dict):
        raise ValueError(f"{place}: must be a JSON object, got {type(record).__name__}")
    if field not in record:
        raise MissingField(f"{place}: must have the field {field!r}, got the keys {shown_names(record)}")
    values = record[field] if isinstance(record[field], list) else [record[field]]
    for value in values:
        if not isinstance(value, str):
            raise ValueError(
                f"{place}: field {field!r} must be a string or a list of strings, got {reprlib.repr(value)}"
            )
        yield value
