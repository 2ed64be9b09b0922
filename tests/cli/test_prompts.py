from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from nanospec.cli.prompts import MAX_PROMPT_BYTES, read_prompts


@pytest.fixture
def write(tmp_path):
    def write_lines(*lines: str):
        path = tmp_path / "prompts.jsonl"
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    return write_lines


def test_prompt_or_first_turn_is_read_and_blank_lines_are_skipped(write):
    path = write('{"prompt": "a"}', "", '{"turns": ["b", "c"]}', "  ")
    assert read_prompts(path) == [("a", "prompts.jsonl, line 1"), ("b", "prompts.jsonl, line 3")]


def test_limit_keeps_the_first_prompts(write):
    prompts = read_prompts(write('{"prompt": "a"}', '{"prompt": "b"}', '{"prompt": "c"}'), limit=2)
    assert [prompt.text for prompt in prompts] == ["a", "b"]


def test_a_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path):
    path = tmp_path / "marked.jsonl"
    path.write_text('{"prompt": "a"}', encoding="utf-8-sig")
    assert read_prompts(path) == [("a", "marked.jsonl, line 1")]


def test_built_in_prompts_are_named_by_their_number():
    assert [prompt.place for prompt in read_prompts(None, limit=2)] == ["built-in prompt 1", "built-in prompt 2"]


def test_a_line_separator_inside_a_string_does_not_end_the_line(write):
    assert read_prompts(write('{"prompt": "a\u2028b"}'))[0].text == "a\u2028b"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3: must be JSON, got '{'"),
        ("[1]", "line 3: must be a JSON object, got list"),
        ('{"question": "a"}', r"line 3: must have `prompt` or `turns`, got the keys \['question'\]"),
        ('{"prompt": ""}', "line 3: prompt must be a non-empty string, got ''"),
        ('{"prompt": 7}', "line 3: prompt must be a non-empty string, got 7"),
        ('{"turns": []}', r"line 3: the first of turns must be a non-empty string, got \[\]"),
        ('{"turns": [null]}', "line 3: the first of turns must be a non-empty string, got None"),
    ],
)
def test_a_broken_line_is_named_by_file_and_number(write, line, message):
    with pytest.raises(ValueError, match="prompts.jsonl, " + message):
        read_prompts(write('{"prompt": "a"}', "", line))


def test_a_file_without_prompts_is_refused(write):
    with pytest.raises(ValueError, match="prompts.jsonl must hold at least one prompt, got none"):
        read_prompts(write("", ""))


def test_a_file_that_is_not_utf8_is_refused_by_name(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"prompt": "café"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.jsonl must be UTF-8 text"):
        read_prompts(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a", "prompt": "b"}', "line 1: must be JSON, whose keys are distinct, got 'prompt' twice"),
        ("[" * 100_000, "line 1: must be JSON that is not nested so deeply"),
        ('{"prompt": "\\ud800"}', "line 1: must hold whole characters"),
        ('{"prompt": ["' + "a" * 10**6 + '"]}', "line 1: prompt must be a non-empty string, got"),
        ('{"' + '": 0, "'.join(f"key {n}" for n in range(10**4)) + '": 0}', "must have `prompt` or `turns`"),
        ('{"prompt": "a"}\0', "prompts.jsonl must be UTF-8 text, got a NUL byte at position 15"),
    ],
    ids=lambda value: value[:20],
)
def test_a_line_made_to_harm_is_refused_in_a_few_words(write, line, message):
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        read_prompts(write(line))
    assert len(str(raised.value)) < 300


def test_prompts_may_come_from_a_pipe(tmp_path):
    reader, writer = os.pipe()
    os.write(writer, b'{"prompt": "a"}\n')
    os.close(writer)
    assert read_prompts(Path(f"/dev/fd/{reader}"))[0].text == "a"
    os.close(reader)


def test_a_file_without_end_is_refused():
    with pytest.raises(ValueError, match=f"zero must hold at most {MAX_PROMPT_BYTES} bytes, got more"):
        read_prompts(Path("/dev/zero"))


def test_a_missing_file_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="prompts must be a file of JSON lines, but .*missing.jsonl does not"):
        read_prompts(tmp_path / "missing.jsonl")
