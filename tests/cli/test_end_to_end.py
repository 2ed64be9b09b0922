"""The commands on a real pair read from disk: tiny, random, with a byte-level tokenizer."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from nanospec.cli.main import app
from tests.pair_on_disk import save_pair

STAGES = {"prefill", "draft", "verify", "vocabulary", "other", "step"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[str, str]:
    """Directories of a target over the 256 bytes and of its drafter."""
    return save_pair(tmp_path_factory.mktemp("pair"))


def run(*arguments: str):
    return CliRunner().invoke(app, [*arguments])


def of(pair: tuple[str, str]) -> list[str]:
    return ["--target", pair[0], "--draft", pair[1], "--tree", "3,3,10"]


def generate(pair, *arguments: str) -> dict:
    result = run("generate", "abc", *of(pair), "--max-new-tokens", "40", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_generate_prints_every_figure(pair):
    printed = generate(pair)
    assert len(printed["token_ids"]) == printed["new_tokens"] == 40
    assert set(printed["seconds"]) == STAGES
    assert printed["mean_accept_length"] > 1.0
    assert (printed["vocab"], printed["drafter"], printed["device"], printed["dtype"], printed["finish_reason"]) == (
        "in-context", "eagle", "cpu", "float32", "length",
    )  # fmt: skip


@pytest.mark.parametrize("sampling", [[], ["--temperature", "1.5", "--seed", "3", "--top-p", "0.9"]])
def test_every_vocabulary_generates_the_same_text(pair, tmp_path, sampling):
    ids = tmp_path / "some.txt"
    ids.write_text("\n".join(str(index) for index in range(0, 200, 7)))
    texts = {generate(pair, "--vocab", vocab, *sampling)["text"] for vocab in ("full", "in-context", f"static:{ids}")}
    assert len(texts) == 1


def test_streamed_text_is_the_text_of_the_json(pair):
    result = run("generate", "abc", *of(pair), "--max-new-tokens", "40")
    assert result.stdout == generate(pair)["text"] + "\n"
    assert "tokens per target pass" in result.stderr


def test_a_stop_string_ends_the_text_before_itself(pair):
    text = generate(pair)["text"]
    stop = text[10:12]
    printed = generate(pair, "--stop", stop)
    assert printed["text"] == text[: text.index(stop)]
    assert printed["finish_reason"] == "stop_string"


def test_compare_finds_every_row_identical(pair, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "hello"}\n\n{"turns": ["first turn", "second turn"]}\n{"prompt": "x"}\n')
    some = tmp_path / "some.json"
    some.write_text(json.dumps(list(range(50, 90))))
    vocabs = [argument for vocab in ("full", f"static:{some}", "in-context") for argument in ("--vocab", vocab)]
    result = run("compare", *of(pair), *vocabs, "--prompts", str(prompts), "--max-new-tokens", "24", "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    rows = {row["vocab"]: row for row in printed["rows"]}
    assert list(rows) == ["autoregressive", "full", "static-some.json", "in-context"]
    assert all(row["identical"] and row["near_ties"] == 0 for row in rows.values())
    assert all(row["new_tokens"] == 72 for row in rows.values())
    assert rows["full"]["mean_active_vocab"] == 256
    assert rows["static-some.json"]["mean_active_vocab"] == 40
    assert rows["in-context"]["draft_vs_headless"] > 0
    assert printed["prompts"]["count"] == 3


def test_the_default_comparison_needs_no_list_of_frequent_ids(pair, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "hello"}\n')
    arguments = ["--prompts", str(prompts), "--max-new-tokens", "12", "--ignore-eos", "--json"]
    result = run("compare", *of(pair), *arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [row["vocab"] for row in rows] == ["autoregressive", "full", "in-context"]
    assert all(row["new_tokens_per_prompt"] == 12 and row["prefill_ms_per_prompt"] > 0 for row in rows)
    assert result.stderr.count("left out static-") == 2
    assert result.stderr.count("left out hybrid-") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "x", "--target", "no/such/place", "--draft", "{draft}"], "target must be a checkpoint directory"),
        (
            ["generate", "x", "--target", "{draft}", "--draft", "{target}"],
            "target model_type must be one of",
        ),
        (["generate", "x", "--target", "{target}", "--draft", "{draft}", "--vocab", "magic"], "'in-context'"),
        (["generate", "x", "--target", "{target}", "--draft", "{draft}", "--max-new-tokens", "0"], "max_new_tokens"),
        (["generate", "x" * 300, "--target", "{target}", "--draft", "{draft}"], "context window of 256, got 300"),
        (
            ["generate", "x", "--target", "{target}", "--draft", "{draft}", "--device", "tpu9"],
            "device must be a device",
        ),
        (["generate", "x", "--target", "{target}", "--draft", "{draft}", "--device", "cuda:99"], "CUDA devices"),
        (["compare", "--target", "{target}", "--draft", "{draft}", "--prompts", "{draft}/config.json"], "line 1"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_two(pair, arguments, message):
    result = run(*(argument.format(target=pair[0], draft=pair[1]) for argument in arguments))
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]


@pytest.mark.parametrize("draft", ["prompt-lookup", "itself"])
def test_drafts_without_special_training_give_the_same_tokens(pair, draft):
    target, eagle = pair
    other = (target, target if draft == "itself" else draft)
    printed = generate(other)
    assert printed["token_ids"] == generate((target, eagle))["token_ids"]
    assert printed["drafter"] == ("causal-lm" if draft == "itself" else draft)


def test_prompt_lookup_joins_a_draft(pair):
    printed = generate(pair, "--lookup")
    assert printed["token_ids"] == generate(pair)["token_ids"]
    assert printed["drafter"] == "eagle+prompt-lookup"
    result = run("generate", "x", *of((pair[0], "prompt-lookup")), "--lookup")
    assert result.exit_code == 2
    assert "lookup=True needs a draft that is a model alone, got prompt-lookup" in result.stderr
