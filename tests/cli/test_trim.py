"""`nanospec trim` on a tiny pair: what it writes, what it reports, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from nanospec.checkpoints import load_drafter, save_drafter
from nanospec.checkpoints.target import load_target
from nanospec.cli.main import app
from nanospec.cli.trim import parse_accept_lengths
from nanospec.costs import memory_bound_speedup, params_per_pass
from nanospec.target import Target
from tests.byte_tokenizer import EOS, NUM_IDS, byte_tokenizer
from tests.checkpoints.eagle3_files import official, write_draft
from tests.tiny_pair import tiny_drafter, tiny_model

LISTED = list(range(100, 60, -1))
HIDDEN = 24


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("pair")
    byte_tokenizer().save_pretrained(root / "target")
    model = tiny_model(seed=4, vocab_size=NUM_IDS, dtype=torch.float64, window=128)
    model.generation_config.eos_token_id = EOS
    model.save_pretrained(root / "target")
    save_drafter(tiny_drafter(Target(model), seed=2, std=0.02), root / "draft")
    return str(root / "target"), str(root / "draft")


@pytest.fixture
def id_list(tmp_path: Path) -> str:
    (tmp_path / "list.json").write_text(json.dumps(LISTED))
    return str(tmp_path / "list.json")


def run(*arguments: str):
    return CliRunner().invoke(app, ["trim", *arguments])


def trimmed(pair, id_list: str, out: Path, *arguments: str) -> dict:
    result = run(pair[1], "--target", pair[0], "--list", id_list, "--out", str(out), "--json", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_an_embedded_draft_is_known_by_its_name(tmp_path: Path, id_list: str) -> None:
    result = run("eagle3", "--list", id_list, "--num-ids", "30", "--out", str(tmp_path / "out"), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["family"] == "EAGLE-3"


def test_the_first_ids_of_the_list_and_eos_are_kept(tmp_path: Path, pair, id_list: str) -> None:
    report = trimmed(pair, id_list, tmp_path / "out", "--num-ids", "10")
    target, _ = load_target(pair[0], device="cpu")
    drafter = load_drafter(tmp_path / "out", target)
    assert drafter.target_ids.tolist() == [*range(92, 101), EOS]  # type: ignore[attr-defined]
    row_bytes = HIDDEN * 8
    assert (report["rows"], report["trimmed_rows"]) == (NUM_IDS, 10)
    assert (report["head_bytes"], report["trimmed_head_bytes"]) == (NUM_IDS * row_bytes, 10 * row_bytes)
    body = sum(parameter.numel() for name, parameter in drafter.named_parameters() if name != "lm_head.weight")  # type: ignore[attr-defined]
    assert report["trimmed_params"] == body + 10 * HIDDEN
    assert report["gains"] == {}


def test_known_accept_lengths_give_the_memory_bound_speed_up(tmp_path: Path, pair, id_list: str) -> None:
    arguments = ("--accept-lengths", "3.5,3.25", "--tree", "4,3,10")
    report = trimmed(pair, id_list, tmp_path / "out", *arguments)
    weights = params_per_pass(load_target(pair[0], device="cpu")[0].model)
    for name, accept_length, params in (("whole", 3.5, "params"), ("trimmed", 3.25, "trimmed_params")):
        assert report["gains"][name] == {
            "accept_length": accept_length,
            "num_passes": 4,
            "mbsu": pytest.approx(memory_bound_speedup(accept_length, 4, report[params], weights)),
            "tokens_per_second": None,
        }


def test_measured_gains_have_a_speed_beside_them(tmp_path: Path, pair, id_list: str) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "ab"}\n{"prompt": "c"}\n')
    arguments = ("--measure", "--prompts", str(tmp_path / "prompts.jsonl"), "--max-new-tokens", "8", "--tree", "2,2,4")
    report = trimmed(pair, id_list, tmp_path / "out", *arguments)
    assert set(report["gains"]) == {"whole", "trimmed"}
    for gain in report["gains"].values():
        assert gain["accept_length"] >= 1
        assert gain["num_passes"] == 2
        assert gain["tokens_per_second"] > 0


def test_a_reader_is_told_in_lines(tmp_path: Path, pair, id_list: str) -> None:
    arguments = ("--list", id_list, "--out", str(tmp_path / "out"), "--num-ids", "10", "--accept-lengths", "3.5,3.25")
    result = run(pair[1], "--target", pair[0], *arguments)
    sizes, whole, short = result.stdout.splitlines()
    assert sizes.startswith("EAGLE-1/2: 258 rows -> 10, head 49,536 bytes -> 1,920, read per pass ")
    assert whole.startswith("whole: accept length 3.50, memory-bound speed-up ")
    assert short.startswith("trimmed: accept length 3.25, memory-bound speed-up ")
    assert short.endswith("x with 5 passes of the draft per step")


def test_eagle_3_with_a_head_needs_no_target(tmp_path: Path) -> None:
    draft = write_draft(tmp_path / "draft", official())
    (tmp_path / "list.txt").write_text("35\n1\n3\n")
    arguments = ("--list", str(tmp_path / "list.txt"), "--out", str(tmp_path / "out"), "--json")
    result = run(str(draft), *arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["trimmed_rows"] == 2
    again = ("--list", str(tmp_path / "out"), "--out", str(tmp_path / "again"), "--json")  # a draft as list
    assert json.loads(run(str(draft), *again).stdout)["trimmed_rows"] == 2


def test_accept_lengths_are_two_numbers() -> None:
    assert parse_accept_lengths("4.1,3.9") == (4.1, 3.9)
    for text in ("4.1", "4,3,2", "a,b"):
        with pytest.raises(ValueError, match=f"accept-lengths must be 'WHOLE,TRIMMED', two numbers, got '{text}'"):
            parse_accept_lengths(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--measure"], "--target must be given with --measure"),
        (["--accept-lengths", "3,3"], "--target must be given with --accept-lengths"),
        (["--target", "x", "--measure", "--accept-lengths", "3,3"], "--accept-lengths must be left out with --measure"),
        (["--tree", "1"], "tree must be 'auto' or 'DEPTH,BRANCHING,NODES'"),
        ([], "target must be given for a draft without a head of its own"),
    ],
)
def test_a_wrong_request_writes_nothing(tmp_path: Path, pair, id_list: str, arguments, message: str) -> None:
    result = run(pair[1], "--list", id_list, "--out", str(tmp_path / "out"), *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["list.json"]


def test_a_draft_as_list_is_taken_whole(tmp_path: Path, pair) -> None:
    draft = write_draft(tmp_path / "draft", official())
    result = run(str(draft), "--list", str(draft), "--num-ids", "3", "--out", str(tmp_path / "out"))
    assert "--num-ids must be left out with a draft as list" in result.stderr
