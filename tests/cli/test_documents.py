from __future__ import annotations

import json
import lzma

import pytest

from nanospec.cli.documents import read_documents
from nanospec.coverage.documents import TextDocument

RECORDS = [
    {"prompt": "a", "response": "b", "category": "chat"},
    {"turns": ["c", "d"], "question_id": 81, "category": "writing"},
    {"turns": ["e"], "question_id": 200, "category": "translation"},
    {"prompt": "", "response": "f"},
]
DOCUMENTS = [
    TextDocument("a", "b", "chat"),
    TextDocument("c", None, "mt_bench"),
    TextDocument("e", None, "translation"),
    TextDocument("", "f", "some"),
]


@pytest.fixture
def write(tmp_path):
    def write_records(records, name="some.jsonl"):
        text = "\n".join(record if isinstance(record, str) else json.dumps(record) for record in records) + "\n\n"
        path = tmp_path / name
        path.write_bytes(lzma.compress(text.encode()) if name.endswith(".xz") else text.encode())
        return path

    return write_records


@pytest.mark.parametrize("name", ["some.jsonl", "some.jsonl.xz"])
def test_records_become_prompt_response_and_task(write, name):
    assert read_documents([write(RECORDS, name)]) == DOCUMENTS


def test_files_are_read_one_after_the_other(write):
    assert read_documents([write(RECORDS[:1]), write(RECORDS[2:3], "more.jsonl")]) == [DOCUMENTS[0], DOCUMENTS[2]]


def test_a_limit_draws_at_random_and_keeps_the_order(write):
    path = write([{"prompt": str(number)} for number in range(50)])
    numbers = [int(document.prompt) for document in read_documents([path], limit=9, seed=1)]
    assert len(numbers) == 9
    assert numbers == sorted(set(numbers)) != list(range(9))
    assert numbers == [int(document.prompt) for document in read_documents([path], limit=9, seed=1)]
    assert numbers != [int(document.prompt) for document in read_documents([path], limit=9, seed=2)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "must be JSON, got '{'"),
        ('{"prompt": "a", "prompt": "b"}', "must be JSON, whose keys are distinct"),
        ("3", "must be a JSON object, got int"),
        ('{"prompt": ""}', "prompt must be a non-empty string, got ''"),
        ('{"prompt": "a", "response": " "}', "response must be a non-empty string, got ' '"),
        ('{"prompt": "a", "category": 3}', "category must be a non-empty string, got 3"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(write, line, message):
    with pytest.raises(ValueError, match=f"some.jsonl, line 2: {message}"):
        read_documents([write([RECORDS[0], line])])


def test_missing_and_empty_files_are_refused(write, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"prompts must be a file of JSON lines, but .*none.jsonl does not exist"
    ):
        read_documents([tmp_path / "none.jsonl"])
    with pytest.raises(ValueError, match="prompts must hold at least one record, got none in some.jsonl"):
        read_documents([write([])])
    (tmp_path / "torn.jsonl.xz").write_bytes(b"{}")
    with pytest.raises(ValueError, match="torn.jsonl.xz must be UTF-8 text, plain or .xz"):
        read_documents([tmp_path / "torn.jsonl.xz"])
    (tmp_path / "bomb.jsonl.xz").write_bytes(lzma.compress(bytes(10**7)))
    with pytest.raises(ValueError, match="bomb.jsonl.xz must be .* one xz stream that expands to at most"):
        read_documents([tmp_path / "bomb.jsonl.xz"])
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        read_documents([write(RECORDS)], limit=0)
