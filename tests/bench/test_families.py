"""The comparison of families on the embedded target: it trains, writes, reads back and measures each of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bench.families import POLICIES, TITLES, app, table_of

WORDS = "the town library opened again on Monday after a long winter and many people came to read".split()
TRAINED = ("eagle3", "medusa", "causal-lm")


def write_records(path: Path, num_records: int) -> Path:
    texts = [" ".join(WORDS[i % 5 :]) for i in range(num_records)]
    path.write_text("".join(json.dumps({"prompt": text, "response": text}) + "\n" for text in texts))
    return path


def invoke(directory: Path, *options: str) -> Result:
    files = [
        "--corpus", str(write_records(directory / "train.jsonl", 20)),
        "--heldout", str(write_records(directory / "heldout.jsonl", 1)), "--out", str(directory / "out"),
    ]  # fmt: skip
    return CliRunner().invoke(app, [*files, "--tokens-per-step", "64", "--seq-len", "32", *options])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("families")
    result = invoke(directory, "--max-steps", "1")
    assert result.exit_code == 0, result.output
    return directory


def read_report(directory: Path) -> dict:
    return json.loads((directory / "out" / "families.json").read_text())


def test_every_family_has_an_accept_length_with_every_vocabulary(finished: Path) -> None:
    families = read_report(finished)["families"]
    assert list(families) == list(TITLES)
    for name, figures in families.items():
        policies = ["none"] if name == "prompt-lookup" else POLICIES
        assert list(figures["vocabularies"]) == list(policies)
        for measured in figures["vocabularies"].values():
            assert 1 <= measured["all"] <= 6  # the bonus token alone, or all five levels with it


def test_rows_are_those_of_the_vocabulary(finished: Path) -> None:
    families = read_report(finished)["families"]
    assert families.pop("prompt-lookup")["vocabularies"]["none"]["rows"] == 0
    full = {name: figures["vocabularies"]["full"]["rows"] for name, figures in families.items()}
    assert full == {**dict.fromkeys(families, 131_072), "eagle3-d2t": 32_768}
    for name in families:
        assert 0 < families[name]["vocabularies"]["in-context"]["rows"] < 1_024
        assert 1_024 <= families[name]["vocabularies"]["hybrid:1024+prior"]["rows"] < 2_048


def test_the_drafts_are_published_checkpoints_and_the_steps_are_counted(finished: Path) -> None:
    families = read_report(finished)["families"]
    assert {name for name, figures in families.items() if "steps" in figures} == set(TRAINED)
    for name in TRAINED:
        assert (families[name]["steps"], families[name]["tokens"]) == (1, 64)
        assert (finished / "out" / name / "draft" / "config.json").exists()


def test_the_table_has_a_row_per_family_and_is_in_the_markdown(finished: Path) -> None:
    table = table_of(read_report(finished))
    assert len(table) == 2 + len(TITLES)
    assert "\n".join(table) in (finished / "out" / "families.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--family", "hydra"), "family must be one of eagle, eagle3, eagle3-d2t, medusa, causal-lm, prompt-lookup"),
        (("--minutes", "-1"), "minutes must be at least 0, got -1"),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing_behind(tmp_path: Path, options, message: str) -> None:
    result = invoke(tmp_path, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
