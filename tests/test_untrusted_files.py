"""JSON and text that anyone may have written: what is refused, and how it is named."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from nanospec.untrusted_files import MAX_DIGITS, parse_json, read_bytes, read_json_file, shown_name, shown_names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "x must be JSON, whose keys are distinct, got 'a' twice"),
        ('{"n": {"a": 1, "a": 1}}', "whose keys are distinct, got 'a' twice"),
        ('{"a": NaN}', "x must be JSON, which has no NaN"),
        ('{"a": -Infinity}', "which has no -Infinity"),
        ('{"a": 1e999}', "numbers that floating point can hold, got 1e999"),
        ("1" * (MAX_DIGITS + 1), f"numbers of up to {MAX_DIGITS} digits, got one of {MAX_DIGITS + 1}"),
        ("9" * 5000, "digits, got one of 5000"),
        ("[" * 100_000 + "]" * 100_000, "x must be JSON that is not nested so deeply"),
        ('{"a":' * 100_000, "x must be JSON that is not nested so deeply"),
        ('"\\ud800"', "x must hold whole characters, got half of one"),
        ('{"\\udfff": 1}', "x must hold whole characters, got half of one"),
        ("\ufeff{}", "x must be JSON, got '\\ufeff{}'"),
        ('{"a": "\0"}', "x must be JSON, got"),
        ("", "x must be JSON, got ''"),
        ("{" + "a" * 10**6, "x must be JSON, got"),
    ],
)
def test_what_is_no_json_is_refused_in_a_few_words(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        parse_json(text, "x")
    assert len(str(raised.value)) < 300


def test_json_means_what_it_says() -> None:
    assert parse_json('{"a": [1, -2.5e3, "\\ud83d\\ude00\\u00e9", null, true], "b": {"a": 1}}', "x") == {
        "a": [1, -2500.0, "😀é", None, True],
        "b": {"a": 1},
    }
    assert parse_json("1" * MAX_DIGITS, "x") == int("1" * MAX_DIGITS)


def test_no_more_than_the_bound_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[1, 2]")
    assert read_json_file(path, max_bytes=6) == [1, 2]
    with pytest.raises(ValueError, match=r"a.json must hold at most 5 bytes, got more"):
        read_json_file(path, max_bytes=5)


def test_a_file_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="/dev/zero must be a regular file"):
        read_bytes(Path("/dev/zero"), 10)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe must be a regular file"):
        read_bytes(tmp_path / "pipe", 10)


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match=r"a.json must be JSON in UTF-8"):
        read_json_file(tmp_path / "a.json")


def test_names_in_errors_are_few_and_short():
    assert shown_name("a" * 80) == "a" * 80
    assert shown_name("a" * 81) == "a" * 77 + "..."
    assert shown_names({"b", "a"}) == ["a", "b"]
    assert shown_names(f"{number}{'x' * 99}" for number in range(10, 30)) == [
        f"{number}{'x' * 75}..." for number in range(10, 18)
    ]
