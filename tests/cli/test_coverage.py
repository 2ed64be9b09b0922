"""The command on a tiny pair read from disk."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from nanospec.cli.main import app
from nanospec.cli.prompts import read_prompts
from tests.pair_on_disk import WINDOW, save_pair

ROW_KEYS = {
    "vocab", "spec", "num_top", "capacity", "draft_temperature", "asked_temperature", "contexts", "accept_vs_full",
    "accept_vs_full_95", "accept_length", "mean_active_vocab", "coverage", "recall_top1", "recall_tree", "upkeep_share",
    "upkeep", "per_task", "per_depth", "per_position",
}  # fmt: skip
TIMES = {"upkeep_share", "upkeep"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> list[str]:
    target, draft = save_pair(tmp_path_factory.mktemp("pair"))
    return ["--target", target, "--draft", draft, "--tree", "3,3,10", "--dtype", "float64"]


@pytest.fixture
def prompts(tmp_path) -> str:
    records = [
        {"prompt": "one", "response": "a line of text that is long enough", "category": "chat"},
        {"prompt": "two", "category": "free"},
        {"prompt": "x" * WINDOW, "response": "no room"},
        {"prompt": "three", "response": "another response", "category": "chat"},
    ]
    path = tmp_path / "some.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    return str(path)


def run(*arguments: str):
    return CliRunner().invoke(app, ["coverage", *arguments])


def measured(*arguments: str) -> dict:
    result = run(*arguments, "--cuts", "2", "--max-new-tokens", "9", "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def without_times(found: dict) -> list[dict]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in found["rows"]]


@pytest.mark.parametrize("sampled", [[], ["--sampled"]])
def test_json_is_one_object_with_a_row_per_policy(pair, prompts, sampled):
    vocabs = ["--vocab", "in-context", "--vocab", "in-context+prior,num_top=3", "--vocab", "full,temperature=0.5"]
    found = measured("--prompts", prompts, *pair, *vocabs, *sampled)
    assert set(found) == {"rows", "tree", "prompts", "machine"}
    assert found["prompts"] == {
        "files": ["some.jsonl"], "limit": None, "documents": 4, "too_long": 1, "contexts": 6, "num_cuts": 2,
        "is_sampled": bool(sampled), "max_new_tokens": 9, "seed": 0,
    }  # fmt: skip
    names = [row["vocab"] for row in found["rows"]]
    assert names == ["full", "in-context", "in-context+prior,num_top=3", "full,temperature=0.5"]
    assert all(set(row) == ROW_KEYS for row in found["rows"])
    full, in_context = found["rows"][:2]
    assert (full["accept_vs_full"], full["coverage"], full["recall_top1"], full["recall_tree"]) == (1, 1, 1, 1)
    assert (full["draft_temperature"], in_context["draft_temperature"]) == (1.0, 1.0 if sampled else 0.5)
    assert set(in_context["per_task"]) == {"chat", "free"}
    assert [step["depth"] for step in in_context["per_depth"]] == [1, 2, 3]
    assert 0 < in_context["mean_active_vocab"] < full["mean_active_vocab"] == WINDOW


def test_the_built_in_prompts_are_measured_on_where_no_others_are_named(pair, monkeypatch):
    monkeypatch.setattr("nanospec.coverage.run.measure_documents", lambda *arguments: [{"contexts": None}])
    monkeypatch.setattr("nanospec.coverage.figures.build_rows", lambda records, described: [])
    found = measured(*pair, "--vocab", "full")
    assert found["prompts"]["files"] == ["demo"]
    assert found["prompts"]["documents"] == len(read_prompts(None))


def test_an_interrupted_run_goes_on_and_equals_one_run(pair, prompts, tmp_path):
    arguments = ["--prompts", prompts, *pair, "--vocab", "in-context", "--sampled"]
    whole, state = measured(*arguments), tmp_path / "state.jsonl"
    measured(*arguments, "--resume", str(state))
    lines = state.read_text().splitlines(keepends=True)
    state.write_text("".join(lines[:3]) + lines[3][:20])
    resumed = measured(*arguments, "--resume", str(state))
    assert without_times(resumed) == without_times(whole)
    assert [json.loads(line)["document"] for line in state.read_text().splitlines()[1:]] == [0, 1, 2, 3]
    other = run(*arguments, "--cuts", "2", "--resume", str(state))
    assert other.exit_code == 2
    assert "resume must be of a run with the same max_new_tokens, 128, got 9" in other.stderr


def test_the_table_names_rows_tasks_and_what_is_missing(pair, prompts, tmp_path):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "pareto.svg"
    result = run("--prompts", prompts, *pair, "--max-new-tokens", "9", "--plot", str(plot))
    assert result.exit_code == 0, result.output
    assert "left out static-1024: vocab 'static:1024' needs a list of frequent ids" in result.stderr
    assert result.stdout.startswith("3 contexts of 4 documents; 1 prompts are too long for the target\n")
    assert all(name in result.stdout for name in ("in-context,num_top=3", "95 %", "free", "coverage by depth"))
    assert "<svg" in plot.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plot", "a.gif"], "plot must be a file named .svg or .png, got a.gif"),
        (["--cuts", "0"], "cuts must be at least 1, got 0"),
        (["--vocab", "static:9"], "vocab 'static:9' needs a list of frequent ids"),
        (["--vocab", "other"], "vocab must be"),
    ],
)
def test_what_cannot_be_measured_is_one_line(pair, prompts, arguments, message):
    result = run("--prompts", prompts, *pair, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
