"""Texts out of files of every kind, and errors that say where."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nanospec.calibration import text_source
from nanospec.calibration.line_cuts import LineCuts
from nanospec.calibration.text_source import TextSource

RECORDS = [{"response": "one\ntwo"}, {"response": ["three", "four"]}, {"response": ""}]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
TEXTS = ["one\ntwo", "three", "four", ""]


def read(corpus: Path | str, **options: str) -> list[str]:
    with TextSource(str(corpus), **options) as source:
        return list(source.texts(LineCuts(True, True)))


def write(path: Path, content: bytes) -> Path:
    opener = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    with opener(path, "wb") as file:
        file.write(content)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.xz", "a.jsonl.gz"])
def test_fields_of_json_lines_are_texts(tmp_path: Path, name: str) -> None:
    assert read(write(tmp_path / name, b"\xef\xbb\xbf" + LINES + b"\n  \n")) == TEXTS


@pytest.mark.parametrize("name", ["a.txt", "a.txt.xz", "a.txt.gz"])
def test_lines_of_text_keep_their_breaks(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "\ufeffa\n\n b\nc\r\n\u00e9".encode())
    assert read(path) == ["a\n\n b\n", "c\r\n", "\u00e9"]


def test_standard_input_is_text_unless_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"a\nb\n")))
    assert read("-") == ["a\n", "b\n"]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(LINES)))
    assert read("-", format="jsonl") == TEXTS


def test_another_field_may_hold_the_text(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.jsonl", b'{"x": "y"}'), field="x") == ["y"]


def test_a_line_without_end_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_source, "MAX_LINE", 7)
    text = "\u00e9\u20ac" * 9  # characters of two and three bytes, cut at seven
    pieces = read(write(tmp_path / "a.txt", text.encode()))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 14


def test_bytes_read_reach_the_size_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl.xz", LINES)
    with TextSource(str(path)) as source:
        assert source.bytes_read == 0
        list(source.texts())
        assert source.bytes_read == source.total_bytes == path.stat().st_size


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        (
            "a.jsonl",
            b'{"response": "x"}\n{"text": "y"}',
            {},
            "a.jsonl, line 2: must have the field 'response'",
        ),
        ("a.jsonl", b'{"response": 3}', {}, "line 1: field 'response' must be a string or a list of strings, got 3"),
        ("a.jsonl", b'{"response": ["x", null]}', {}, "line 1: field 'response' must be .*, got None"),
        ("a.jsonl", b'{"response": "a", "response": "b"}', {}, "line 1: must be JSON, whose keys are distinct"),
        ("a.jsonl", b"[" * 2000, {}, "line 1: must be JSON that is not nested so deeply"),
        ("a.jsonl", b"[1]", {}, "line 1: must be a JSON object, got list"),
        ("a.jsonl", b'{"response":', {}, "line 1: must be JSON, got '"),
        ("a.jsonl", b'{"response": "x"}\n{"response": "\xff"}', {}, "a.jsonl, line 2: must be UTF-8 text"),
        ("a.txt", b"\xff", {}, "a.txt must be UTF-8 text"),
        ("a.txt", "\u20ac".encode()[:2], {}, "a.txt must be UTF-8 text"),
        (
            "a.csv",
            b"x",
            {},
            "format must be given, one of text, jsonl, .* end in .txt or .jsonl",
        ),
        ("a.txt", b"x", {"format": "csv"}, "format must be one of text, jsonl, got 'csv'"),
    ],
)
def test_a_bad_corpus_is_refused_with_its_place(
    tmp_path: Path, name: str, content: bytes, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path / name, content), **options)


@pytest.mark.parametrize("suffix", [".xz", ".gz"])
def test_a_compressed_file_that_is_damaged_or_cut_off_is_named(tmp_path: Path, suffix: str) -> None:
    whole = write(tmp_path / f"a.txt{suffix}", b"text\n" * 999).read_bytes()
    for content in (whole[:-9], b"no " + whole):
        (tmp_path / f"b.txt{suffix}").write_bytes(content)
        with pytest.raises(ValueError, match=f"b.txt{suffix} must be a whole compressed file"):
            read(tmp_path / f"b.txt{suffix}")


def test_a_missing_corpus_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="corpus must be a file or '-', got .*none.txt"):
        TextSource(str(tmp_path / "none.txt"))


def test_a_line_of_json_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("nanospec.calibration.text_source.MAX_RECORD", 99)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"response": "a"}\n' + b" " * 100))
    with (
        TextSource(str(tmp_path / "a.jsonl.gz")) as source,
        pytest.raises(ValueError, match="line 2: must have at most"),
    ):
        list(source.texts())
