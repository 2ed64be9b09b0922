"""`nanospec calibrate`: lists of text and of what a tiny pair generates, gone on with after an interruption."""

from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from nanospec.calibration.token_counts import load_counts, no_counts, save_counts
from nanospec.cli.main import app
from nanospec.vocab.static_list import read_static_list
from tests.byte_tokenizer import BOS, EOS, NUM_IDS, byte_tokenizer, ids_of
from tests.tiny_pair import tiny_model

TEXTS = ["banana", "bread", "b"]
A, B, D, E, N, R = (ids_of(letter)[0] for letter in "abdenr")
BY_COUNT = [A, B, N, *sorted([D, E, R])]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("target")
    byte_tokenizer().save_pretrained(directory)
    tiny_model(seed=4, vocab_size=NUM_IDS, dtype=torch.float64, window=64).save_pretrained(directory)
    return str(directory)


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    path = tmp_path / "corpus.jsonl.xz"
    with lzma.open(path, "wt") as file:
        file.writelines(json.dumps({"response": text}) + "\n" for text in TEXTS)
    return str(path)


def run(*arguments: str, input: str | None = None):
    return CliRunner().invoke(app, ["calibrate", *arguments], input=input)


@pytest.mark.parametrize("name", ["list.safetensors", "list.pt"])
def test_special_tokens_come_first_then_the_most_frequent_ids(tmp_path: Path, tokenizer, corpus, name: str) -> None:
    out = tmp_path / name
    result = run("--corpus", corpus, "--tokenizer", tokenizer, "--out", str(out), "--json")
    assert result.exit_code == 0, result.output
    assert read_static_list(out, NUM_IDS).tolist() == [BOS, EOS, *BY_COUNT]
    assert json.loads(result.stdout) == {
        "out": str(out), "num_ids": 8, "num_kept": 2, "num_texts": 3, "num_tokens": 12, "num_seen": 6,
        "coverage": {"8": 1.0},
    }  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl.xz", name]


def test_a_reader_is_told_what_was_counted(tmp_path: Path, tokenizer, corpus) -> None:
    out = str(tmp_path / "list.pt")
    result = run("--corpus", corpus, "--tokenizer", tokenizer, "--out", out, "--num-ids", "4")
    assert result.stdout.splitlines() == [
        f"12 tokens of 3 texts, 6 distinct ids; wrote 4 to {out}, the first 2 of them special tokens",
        "share of the tokens: 4 ids 58.3 %",
    ]


def test_standard_input_is_counted(tmp_path: Path, tokenizer) -> None:
    out = tmp_path / "list.safetensors"
    result = run("--corpus", "-", "--tokenizer", tokenizer, "--out", str(out), input="baa\n")
    assert result.exit_code == 0, result.output
    assert read_static_list(out, NUM_IDS).tolist() == [BOS, EOS, A, *sorted([B, ids_of("\n")[0]])]


def test_it_is_said_where_lines_are_no_texts_of_their_own(tmp_path: Path, tokenizer) -> None:
    directory = tmp_path / "prepending"
    shutil.copytree(tokenizer, directory)
    content = json.loads((directory / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Prepend", "prepend": "a"}
    (directory / "tokenizer.json").write_text(json.dumps(content))
    for path, said in ((directory, True), (tokenizer, False)):
        out = tmp_path / "list.safetensors"
        result = run("--corpus", "-", "--tokenizer", str(path), "--out", str(out), "--json", input="b\nb\nb\n")
        assert result.exit_code == 0, result.output
        assert ("gives lines other ids alone than inside a text" in result.stderr) == said
        assert json.loads(result.stdout)["num_tokens"] == 6 + said  # one in front of the whole, not of each line


def test_an_interrupted_count_goes_on_where_it_was(tmp_path: Path, tokenizer, corpus) -> None:
    out, state = tmp_path / "list.pt", tmp_path / "list.pt.counting"
    settings = {"tokenizer": tokenizer, "format": "jsonl", "field": "response"}
    save_counts(state, no_counts(NUM_IDS).add(TEXTS[:2], [[E], [E, D, D]]), settings)  # counts of another tokenizer
    result = run("--corpus", corpus, "--tokenizer", tokenizer, "--out", str(out))
    assert result.exit_code == 0, result.output
    assert read_static_list(out, NUM_IDS).tolist() == [BOS, EOS, *sorted([D, E]), B]
    assert not state.exists()


def test_a_list_that_cannot_be_keeps_what_was_counted(tmp_path: Path, tokenizer, corpus) -> None:
    out, state = tmp_path / "list.pt", tmp_path / "list.pt.counting"
    result = run("--corpus", corpus, "--tokenizer", tokenizer, "--out", str(out), "--num-ids", "9")
    assert result.exit_code == 2
    assert "num_ids must be between 2, the ids that are always kept, and 8" in result.stderr
    assert not out.exists()
    assert load_counts(state, NUM_IDS, {}).num_texts == 3


@pytest.mark.parametrize("sampling", [[], ["--temperature", "1", "--seed", "3"]], ids=["greedy", "sampled"])
def test_what_the_target_generates_is_counted(tmp_path: Path, target, sampling: list[str]) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "ab"}\n{"turns": ["c"]}\n{"prompt": "d"}\n')
    out = tmp_path / "list.pt"
    arguments = ["--generate", "--target", target, "--prompts", str(tmp_path / "prompts.jsonl"), *sampling]
    result = run(*arguments, "--limit", "2", "--max-new-tokens", "9", "--out", str(out), "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert (printed["num_texts"], printed["num_tokens"]) == (2, 18)
    ids = read_static_list(out, NUM_IDS).tolist()
    assert ids[:2] == [EOS, BOS]  # what the target says ends a text comes first
    options = {"max_new_tokens": 9, **({"temperature": 1.0} if sampling else {})}
    assert set(ids) - {BOS, EOS} == generated(target, ["ab", "c"], 3 if sampling else 0, **options) - {BOS, EOS}


def test_a_count_of_another_draft_or_device_is_not_gone_on_with(tmp_path: Path, target) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "ab"}\n')
    out, state = tmp_path / "list.pt", tmp_path / "list.pt.counting"
    arguments = ["--generate", "--target", target, "--prompts", str(tmp_path / "prompts.jsonl"), "--max-new-tokens"]
    run(*arguments, "3", "--device", "cpu", "--num-ids", "9999", "--out", str(out))  # refused: the count stays
    with safe_open(state, framework="pt") as file:
        settings = json.loads(file.metadata()["settings"])
    for name, value in (("draft", "another"), ("device", "cuda:0")):
        counted = load_counts(state, NUM_IDS, {})
        save_counts(state, counted, {**settings, name: value})
        result = run(*arguments, "3", "--device", "cpu", "--out", str(out))
        assert result.exit_code == 2
        assert f"must be of a count with {name} {settings[name]!r}, got {value!r}" in " ".join(result.stderr.split())


def generated(target: str, prompts: list[str], seed: int, **options: float) -> set[int]:
    from nanospec import SpeculativeDecoder

    decoder = SpeculativeDecoder.from_pretrained(target, "prompt-lookup", device="cpu")
    return {
        token_id
        for number, prompt in enumerate(prompts)
        for token_id in decoder.generate_autoregressive(decoder.encode(prompt), seed=seed + number, **options).token_ids
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --corpus or --generate, got neither"),
        (["--corpus", "a.txt", "--generate"], "give either --corpus or --generate, got both"),
        (["--generate", "--format", "text"], "--format must be left out with --generate, got text"),
        (["--corpus", "a.txt", "--target", "x"], "--target must be left out with --corpus, got x"),
        (["--corpus", "none.txt"], "corpus must be a file or '-', got 'none.txt'"),
        (["--corpus", "-", "--tokenizer", "no such/x/y"], "tokenizer must be a checkpoint directory or a hub id"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_read(tmp_path: Path, arguments, message: str) -> None:
    result = run(*arguments, "--out", str(tmp_path / "list.pt"))
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_record_without_the_field_names_the_option(tmp_path: Path, tokenizer) -> None:
    corpus = tmp_path / "rows.jsonl"
    corpus.write_text('{"prompt": "no response"}\n')
    result = run("--corpus", str(corpus), "--tokenizer", tokenizer, "--out", str(tmp_path / "list.pt"))
    assert result.exit_code == 2
    assert "must have the field 'response', got the keys" in result.stderr
    assert "--field names the one that holds the text" in result.stderr


def test_a_list_has_a_name_that_says_how_it_is_written(tmp_path: Path) -> None:
    for name, message in (("list.csv", "path must end in .safetensors or .pt"), ("no/list.pt", "out must lie in")):
        result = run("--corpus", "-", "--out", str(tmp_path / name))
        assert result.exit_code == 2
        assert message in result.stderr


def test_an_empty_corpus_is_refused_and_leaves_nothing(tmp_path: Path, tokenizer) -> None:
    result = run("--corpus", "-", "--tokenizer", tokenizer, "--out", str(tmp_path / "list.pt"), input="")
    assert result.exit_code == 2
    assert "corpus must hold at least one text, got none" in result.stderr
    assert not list(tmp_path.iterdir())
