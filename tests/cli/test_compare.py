from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from nanospec.cli.compare import name_rows
from nanospec.cli.main import app
from tests.cli.conftest import CONTEXT_WINDOW

ROW_KEYS = {
    "vocab",
    "tokens_per_second",
    "speedup_vs_autoregressive",
    "speedup_vs_full",
    "mean_accept_length",
    "accept_vs_full",
    "mean_active_vocab",
    "draft_ms_per_step",
    "draft_vs_full",
    "draft_vs_headless",
    "vocabulary_share",
    "prefill_ms_per_prompt",
    "end_to_end_tokens_per_second",
    "end_to_end_vs_autoregressive",
    "identical",
    "near_ties",
    "new_tokens",
    "new_tokens_per_prompt",
    "target_passes",
    "seconds",
}
OTHER_TOKENS = [10, 11, 12, 99, 14, 15, 16, 17, 18]


@pytest.fixture
def prompts(tmp_path) -> str:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"prompt": "one"}\n\n{"turns": ["two", "three"], "category": "chat"}\n', encoding="utf-8")
    return str(path)


@pytest.fixture
def compare(prompts):
    def run(*arguments: str):
        vocabs = ["--vocab", "full", "--vocab", "static:4096", "--vocab", "in-context"]
        return CliRunner().invoke(app, ["compare", "--prompts", prompts, *vocabs, *arguments])

    return run


def test_json_is_one_complete_object_and_nothing_else(script, compare):
    result = compare("--json")
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    asked = {"compile", "draft_temperature", "lookup"}
    assert set(printed) == {"rows", "differences", "tree", "prompts", "machine"} | asked
    assert (printed["compile"], printed["draft_temperature"], printed["lookup"]) == (False, None, False)
    assert [row["vocab"] for row in printed["rows"]] == ["autoregressive", "full", "static-4096", "in-context"]
    assert all(set(row) == ROW_KEYS for row in printed["rows"])
    assert printed["differences"] == []
    assert printed["tree"] == {"depth": 5, "branching": 8, "num_nodes": 32}
    assert printed["prompts"] == {
        "count": 2, "max_new_tokens": 64, "ignore_eos": False, "source": "questions.jsonl",
    }  # fmt: skip
    assert {"cpu", "cores", "torch", "transformers", "nanospec", "device", "dtype"} <= set(printed["machine"])
    assert printed["machine"]["dtype"] == "float32"


def test_the_draft_temperature_reaches_the_decoder_and_the_json(script, compare):
    assert json.loads(compare("--json", "--draft-temperature", "1").stdout)["draft_temperature"] == 1.0
    assert script.loaded[0][1]["draft_temperature"] == 1.0


def test_compile_reaches_the_decoder_and_the_json(script, compare):
    printed = json.loads(compare("--json", "--compile").stdout)
    assert printed["compile"] is True
    assert script.loaded[0][1]["compile"] is True


def test_the_table_and_its_meaning_are_printed(script, compare):
    result = compare()
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    [row] = [line.split() for line in lines if line.startswith("in-context ") and "drafts" not in line]
    assert row == "in-context 8.0 4.00x 2.00x 2.50 125% 50 62.50 25% 1.25x 5.0% 500.0 3.00x yes 0".split()
    assert "in-context drafts from 50 rows instead of 1,000: draft time is 25% of full's" in result.stdout
    assert "all tokens are exactly autoregressive decoding's" in lines[-1]


def test_a_log_is_told_how_far_the_runs_are(script, compare):
    lines = compare("--json").stderr.splitlines()
    assert lines[0] == "comparing 4 rows on 2 prompts: 18 runs to go"
    assert lines[-1].startswith("comparing 4 rows on 2 prompts: 18 of 18 runs, ")


def test_a_different_row_is_shown_and_exits_1(script, compare):
    script.tokens["full"] = OTHER_TOKENS
    result = compare("--json")
    assert result.exit_code == 1
    printed = json.loads(result.stdout)
    assert [row["identical"] for row in printed["rows"]] == [True, False, True, True]
    assert [row["near_ties"] for row in printed["rows"]] == [0, 0, 0, 0]
    places = [(d["vocab"], d["prompt"], d["position"]) for d in printed["differences"]]
    assert places == [("full", 0, 3), ("full", 1, 3)]
    assert "NOT IDENTICAL to autoregressive decoding: full." in compare().stdout


def test_near_ties_of_half_precision_are_counted_and_shown(script, compare):
    script.dtype = torch.bfloat16  # a margin of 0.25 under a top logit of 16 is below the bound of 0.5
    script.tokens["in-context"] = OTHER_TOKENS
    result = compare("--json")
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    assert [row["identical"] for row in printed["rows"]] == [True] * 4
    assert [row["near_ties"] for row in printed["rows"]] == [0, 0, 0, 2]
    shown = compare().stdout
    assert "in-context, prompt 1, token 4: margin 0.25, near-tie below 0.5" in shown
    assert "up to 2 near-ties" in shown


def test_the_default_vocabularies_are_full_two_static_lists_and_in_context():
    from nanospec.cli.compare import VOCABS

    assert list(name_rows(VOCABS)) == ["full", "static-4096", "static-32768", "in-context", "hybrid-1024+prior"]


def test_default_static_rows_that_the_pair_has_no_list_for_are_left_out(script, prompts):
    script.num_frequent_ids = 5000
    result = CliRunner().invoke(app, ["compare", "--prompts", prompts, "--json"])
    assert result.exit_code == 0, result.stderr
    names = [row["vocab"] for row in json.loads(result.stdout)["rows"]]
    assert names == ["autoregressive", "full", "static-4096", "in-context", "hybrid-1024+prior"]
    told = "left out static-32768: vocab 'static:32768' needs as many frequent ids"
    assert result.stderr.splitlines()[0] == told


@pytest.mark.parametrize("vocab", ["static:32768", "magic"])
def test_a_row_that_was_asked_for_and_cannot_be_built_is_an_error(script, prompts, vocab):
    script.num_frequent_ids = 5000
    result = CliRunner().invoke(app, ["compare", "--prompts", prompts, "--vocab", "in-context", "--vocab", vocab])
    assert (result.exit_code, result.stdout, script.calls) == (2, "", [])
    assert result.stderr.startswith("error: vocab ")


def test_a_list_in_a_file_is_named_after_the_file():
    assert name_rows(["static:lists/code.txt"]) == {"static-code.txt": "static:lists/code.txt"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vocab", "full"], "vocab must be given once per name, got 'full'"),
        (["--limit", "0"], "limit must be at least 1, got 0"),
        (["--max-new-tokens", "0"], "max-new-tokens must be at least 1, got 0"),
        (["--target", "big"], "must be given together"),
    ],
)
def test_bad_arguments_give_one_error_line_and_exit_2(script, compare, arguments, message):
    result = compare(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert script.loaded == []


def test_ignore_eos_reaches_every_run_and_the_json(script, compare):
    script.dtype, script.tokens["full"] = torch.bfloat16, OTHER_TOKENS
    result = compare("--ignore-eos", "--json")
    assert json.loads(result.stdout)["prompts"]["ignore_eos"] is True
    assert any("return_candidates" in settings for _, _, settings in script.calls)
    assert all(settings["ignore_eos"] for _, _, settings in script.calls)


def test_temperature_and_seed_reach_every_run_and_the_json(script, compare):
    result = compare("--temperature", "0.7", "--seed", "5", "--json")
    about = json.loads(result.stdout)["prompts"]
    assert (about["temperature"], about["seed"]) == (0.7, 5)
    assert all((settings["temperature"], settings["seed"]) == (0.7, 5) for _, _, settings in script.calls)


def test_a_prompt_that_does_not_fit_is_named_before_anything_runs(script, tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text('{"prompt": "one"}\n\n{"prompt": "%s"}\n' % ("x" * CONTEXT_WINDOW), encoding="utf-8")
    result = CliRunner().invoke(app, ["compare", "--prompts", str(path), "--json"])
    assert (result.exit_code, result.stdout, script.calls) == (2, "", [])
    assert result.stderr == (
        "error: long.jsonl, line 3: input_ids must be shorter than the context window of 20, got 20 tokens\n"
    )


def test_a_built_in_prompt_that_does_not_fit_is_named_by_its_number(script):
    result = CliRunner().invoke(app, ["compare"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: built-in prompt 1: input_ids must be shorter than the context window")


def test_a_broken_prompts_line_is_named(script, tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_text('{"prompt": "one"}\n{"prompt": \n', encoding="utf-8")
    result = CliRunner().invoke(app, ["compare", "--prompts", str(path)])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: broken.jsonl, line 2: must be JSON, got")
