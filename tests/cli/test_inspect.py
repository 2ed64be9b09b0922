"""`nanospec inspect`: rows or one object, and an exit status that scripts can use."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig
from typer.testing import CliRunner

from nanospec.checkpoints.describe import CheckpointDescription
from nanospec.cli.main import app
from nanospec.demo import TARGET_DIRECTORY
from tests.checkpoints.eagle3_files import CONFIG, HIDDEN, VOCAB, official, write_draft
from tests.checkpoints.test_mtp import written


@pytest.fixture
def draft(tmp_path: Path) -> str:
    return str(write_draft(tmp_path / "draft", official()))


@pytest.fixture
def target(tmp_path: Path) -> str:
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=24, num_hidden_layers=8, num_attention_heads=4
    )
    config.save_pretrained(tmp_path / "target")
    return str(tmp_path / "target")


def run(*arguments: str):
    return CliRunner().invoke(app, ["inspect", *arguments])


def test_rows_name_what_it_is(draft: str, target: str) -> None:
    result = run(draft, "--target", target)
    assert result.exit_code == 0
    rows = dict(line.strip().split("  ", 1) for line in result.stdout.splitlines())
    rows = {name: value.strip() for name, value in rows.items()}
    assert rows["family"] == "EAGLE-3"
    assert rows["feature layers"] == "2, 4, 5"
    assert rows["draft vocab size"] == "9"
    assert rows["optional parts"] == "head, d2t, t2d"
    assert rows["target"].startswith("fits ")


def test_json_is_one_object_and_nothing_else(draft: str) -> None:
    result = run(draft, "--json")
    printed = json.loads(result.stdout)
    assert set(printed) == {field.name for field in fields(CheckpointDescription)} | {"target"}
    assert (printed["family"], printed["problems"], printed["target"]) == ("EAGLE-3", [], None)


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_problem_is_shown_and_ends_with_status_2(tmp_path: Path, target: str, form: tuple[str, ...]) -> None:
    tensors = official()
    del tensors["norm.weight"]
    result = run(str(write_draft(tmp_path / "broken", tensors)), "--target", target, *form)
    assert result.exit_code == 2
    assert "missing tensors ['norm.weight']" in " ".join(result.stdout.split())


def test_modules_inside_a_target_are_counted_and_checked(tmp_path: Path) -> None:
    directory = str(written(tmp_path))
    rows = [line.split("  ", 1) for line in run(directory).stdout.splitlines()]
    assert {name: value.strip() for name, value in rows}["mtp modules"] == "1"
    result = run("mtp", "--target", directory)
    assert result.exit_code == 0
    assert "native MTP" in result.stdout
    assert f"fits {directory}" in " ".join(result.stdout.split())


def test_what_a_file_says_cannot_steer_the_terminal(tmp_path: Path) -> None:
    config = {**CONFIG, "architectures": ["\x1b[2Jcleared"]}
    directory = write_draft(tmp_path / "draft", {**official(), "\x1b]0;title\x07": torch.zeros(1)}, config)
    result = run(str(directory))
    assert "?[2Jcleared" in result.stdout
    assert "\x1b" not in result.stdout + run(str(directory), "--target", str(directory)).stderr


def test_an_embedded_draft_is_known_by_its_name_and_fits_its_target() -> None:
    result = run("medusa", "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert (printed["family"], printed["target"]) == ("Medusa", str(TARGET_DIRECTORY))


def test_a_config_alone_is_for_another_command(tmp_path: Path) -> None:
    path = tmp_path / "llama.json"
    path.write_text("{}")
    result = run(str(path))
    assert result.exit_code == 2
    assert "a config.json alone is for nanospec plan" in result.stderr


def test_what_is_not_there_is_one_line_on_stderr(tmp_path: Path) -> None:
    result = run(str(tmp_path / "nowhere"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: path must be a checkpoint directory or a hub id")
    assert result.stderr.count("\n") == 1
