from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
from typer.testing import CliRunner

from nanospec.cli.generate import figures_line
from nanospec.cli.main import app
from nanospec.stats import GenerationStats
from nanospec.tree_shape import TreeShape

RESULT_KEYS = {
    "text",
    "token_ids",
    "finish_reason",
    "lossless",
    "new_tokens",
    "target_passes",
    "mean_accept_length",
    "mean_active_vocab",
    "observed_ids",
    "unsayable_ids",
    "tokens_per_second",
    "seconds",
    "vocab",
    "drafter",
    "tree",
    "device",
    "dtype",
}


def run(*arguments: str):
    return CliRunner().invoke(app, ["generate", *arguments])


def test_text_goes_to_stdout_and_one_line_of_figures_to_stderr(script):
    result = run("Hello")
    assert result.exit_code == 0
    assert result.stdout == "two words\n"
    # 0.5 + 0.25 + 0.5 + 0.05 + 0.2 seconds; 8 tokens after the first in 1.0 of them; 10 tokens and 200 rows in 4 passes
    assert result.stderr == (
        "9 tokens in 1.50 s: 8.0 tokens/s, 2.50 tokens per target pass, drafted from 50 rows "
        "(in-context, tree 5,8,32, cpu, float32)\n"
    )


def test_ids_outside_of_the_drafts_vocabulary_are_shown():
    stats = GenerationStats("in-context", "eagle3", "cpu", "float32", observed_ids=12_000, unsayable_ids=1_500)
    assert figures_line(stats).endswith("float32); 1,500 of 12,000 ids seen are outside the draft's vocabulary")


def test_json_is_one_complete_object_and_nothing_else(script):
    result = run("Hello", "--json")
    printed = json.loads(result.stdout)
    assert set(printed) == RESULT_KEYS
    assert set(printed["seconds"]) == {"prefill", "draft", "verify", "vocabulary", "other", "step"}
    assert printed["tree"] == {"depth": 5, "branching": 8, "num_nodes": 32}
    assert printed["tokens_per_second"] == 8.0
    assert result.stderr == ""


def test_json_generates_under_a_spinner(script, monkeypatch):
    shown = []

    @contextmanager
    def spinner(label):
        shown.append(label)
        yield

    monkeypatch.setattr("nanospec.cli.generate.busy", spinner)
    json.loads(run("Hello", "--json").stdout)
    assert shown == ["generating"]


def test_options_reach_the_decoder(script):
    options = "--vocab full --temperature 0.8 --top-k 7 --top-p 0.9 --min-p 0.1 --repetition-penalty 1.2 --seed 3"
    result = run(
        "Hi",
        *options.split(),
        "--max-new-tokens",
        "5",
        "--stop",
        "a",
        "--stop",
        "b c",
        "--tree",
        "3,4,9",
        "--num-top",
        "5",
        "--draft-temperature",
        "0.7",
        "--no-cuda-graph",
        "--lookup",
    )
    assert result.exit_code == 0, result.stderr
    loaded = {"vocab": "full", "tree": TreeShape(3, 4, 9), "dtype": None, "device": None, "num_top": 5}
    loaded |= {"compile": False, "cuda_graph": False, "draft_temperature": 0.7, "lookup": True}
    assert script.loaded == [("demo", loaded)]
    [(_, prompt, settings)] = script.calls
    assert prompt == "Hi"
    assert settings == {
        "max_new_tokens": 5,
        "temperature": 0.8,
        "top_k": 7,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "seed": 3,
        "acceptance": "exact",
        "stop_strings": ("a", "b c"),
    }


def test_a_lossy_acceptance_must_be_named_and_is_reported(script):
    assert script.lossless
    script.lossless = False
    result = run("Hi", "--acceptance", "typical", "--temperature", "1")
    assert result.exit_code == 0, result.stderr
    assert script.calls[0][2]["acceptance"] == "typical"
    assert result.stderr.endswith("(in-context, tree 5,8,32, cpu, float32); lossy acceptance\n")
    assert json.loads(run("Hi", "--json").stdout)["lossless"] is False


def test_compilation_is_over_before_the_text_begins(script, monkeypatch):
    shown = []

    @contextmanager
    def spinner(label):
        shown.append((label, len(script.calls)))
        yield

    monkeypatch.setattr("nanospec.cli.generate.busy", spinner)
    assert run("Hello", "--compile").stdout == "two words\n"
    assert script.loaded[0][1]["compile"] is True
    assert shown == [("compiling", 0)]
    assert script.warm_ups == 1
    assert run("Hello", "--no-compile").exit_code == 0
    assert script.warm_ups == 1


def test_target_and_draft_are_loaded_together(script):
    result = run("Hi", "--target", "big", "--draft", "small", "--tree", "auto", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.stderr
    [(pair, options)] = script.loaded
    assert pair == ("big", "small")
    assert (options["tree"], options["dtype"]) == ("auto", "bfloat16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Hi", "--target", "big"], "must be given together, got --target without --draft"),
        (["Hi", "--draft", "small"], "must be given together, got --draft without --target"),
        ([], "either PROMPT or --prompt-file, got neither"),
        (["  "], "PROMPT must hold text"),
        (["Hi", "--prompt-file", "x.txt"], "either PROMPT or --prompt-file, got both"),
        (
            ["Hi", "--draft", "eagel"],
            "without --target, --draft must be one of eagle, eagle3, medusa, prompt-lookup, got 'eagel'",
        ),
        (
            ["--prompt-file", "no_such_file.txt"],
            "prompt-file must be a file of text, but no_such_file.txt does not exist",
        ),
        (["Hi", "--tree", "wide"], "tree must be 'auto' or 'DEPTH,BRANCHING,NODES', got 'wide'"),
    ],
)
def test_bad_arguments_give_one_error_line_and_exit_2(script, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert script.loaded == []


@pytest.mark.parametrize("error", [ValueError, TypeError, NotImplementedError, OSError])
def test_an_error_of_the_library_is_one_line_without_a_traceback(script, error):
    script.error = error("vocab must be full,\n  got 'none'")
    result = run("Hi")
    assert result.exit_code == 2
    assert result.stderr == "error: vocab must be full, got 'none'\n"


@pytest.mark.parametrize("switch", ["--debug", "NANOSPEC_DEBUG"])
def test_debug_lets_the_error_through(script, monkeypatch, switch):
    script.error = ValueError("vocab must be full")
    if switch == "NANOSPEC_DEBUG":
        monkeypatch.setenv(switch, "1")
    result = run("Hi", *(["--debug"] if switch == "--debug" else []))
    assert result.exception is script.error


def test_the_prompt_can_come_from_a_file(script, tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("From a file", encoding="utf-8")
    assert run("--prompt-file", str(path)).exit_code == 0
    assert script.calls[0][1] == "From a file"


def test_a_byte_order_mark_is_no_part_of_the_prompt(script, tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("From a file", encoding="utf-8-sig")
    assert run("--prompt-file", str(path)).exit_code == 0
    assert script.calls[0][1] == "From a file"


def test_a_target_without_a_tokenizer_is_refused_in_the_terms_of_the_command_line(script, monkeypatch):
    from tests.cli.conftest import FakeDecoder

    monkeypatch.setattr(FakeDecoder, "tokenizer", None)
    result = run("Hi", "--target", "big", "--draft", "prompt-lookup")
    assert (result.exit_code, script.calls) == (2, [])
    assert result.stderr == "error: --target must hold a tokenizer beside its weights, got none in 'big'\n"


@pytest.mark.parametrize(("short", "name"), [("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32")])
def test_short_names_of_dtypes_are_known(script, short, name):
    assert run("Hi", "--dtype", short).exit_code == 0
    assert script.loaded[0][1]["dtype"] == name


def test_version_is_printed():
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("nanospec ")


def test_prompt_lookup_drafts_for_the_embedded_target_or_for_a_given_one(script):
    assert run("Hello", "--draft", "prompt-lookup").exit_code == 0
    assert run("Hello", "--target", "there", "--draft", "prompt-lookup").exit_code == 0
    assert [pair for pair, _ in script.loaded] == ["demo prompt-lookup", ("there", "prompt-lookup")]
