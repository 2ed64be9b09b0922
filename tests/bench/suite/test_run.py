"""The command on a tiny pair: every row that has its file, resumed, and with an answer that is not the target's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner, Result

from bench.suite.__main__ import JSON_NAME, MARKDOWN_NAME, STATE_NAME, app
from bench.suite.peers import load_assistant
from bench.suite.prompts import read_prompt_set
from bench.suite.rows import BY_NAME, VLLM_ROWS
from nanospec.checkpoints.save import save_drafter
from nanospec.checkpoints.target import load_target
from nanospec.decode import SpeculativeDecoder
from tests.bench.suite.fake_interpreter import DESCRIBED, write_interpreter
from tests.pair_on_disk import save_pair
from tests.tiny_medusa import tiny_medusa

ROWS = (
    "autoregressive", "transformers", "transformers-assisted", "transformers-lookup", "full", "medusa-full",
    "in-context",
)  # fmt: skip
NUM_PROMPTS = 4


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("suite")
    target, draft = save_pair(root, window=400)
    loaded, _ = load_target(target, dtype=torch.float64)
    save_drafter(tiny_medusa(loaded, seed=1), root / "medusa", target=loaded)
    shutil.copytree(target, root / "assistant")
    questions = [{"question_id": n, "category": task, "turns": [f"{task} {n}"]} for n, task in enumerate(("qa", "rag"))]
    problems = [{"task_id": n, "prompt": f"def f{n}(x):\n"} for n in range(2)]
    for name, records in (("question.jsonl", questions), ("human_eval.jsonl", problems)):
        (root / name).write_text("\n".join(map(json.dumps, records)))
    return {
        "prompts": str(root), "target": target, "draft": draft, "medusa": str(root / "medusa"),
        "assistant": str(root / "assistant"),
    }  # fmt: skip


def invoke(files: dict[str, str], out: Path, *more: str) -> Result:
    options = [part for name, value in files.items() for part in (f"--{name}", value)]
    fixed = ["--max-new-tokens", "24", "--tree", "4,3,8", "--dtype", "float64", "--no-plots", "--out", str(out)]
    return CliRunner().invoke(app, [*options, *fixed, *more])


@pytest.fixture(scope="module")
def finished(files: dict[str, str], tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out")
    result = invoke(files, out)
    assert result.exit_code == 0, result.output
    assert "left out routed: --router was not given" in result.stderr
    return out


def read(out: Path) -> dict:
    return json.loads((out / JSON_NAME).read_text())


def test_every_row_with_its_file_is_measured_and_right(finished: Path) -> None:
    report = read(finished)
    assert [row["row"] for row in report["rows"]] == list(ROWS)
    assert all(row["is_right"] and row["near_ties"] == 0 for row in report["rows"])
    assert report["prompts"]["tasks"] == {"qa": 1, "rag": 1, "human_eval": 2}
    for row in report["rows"]:
        assert row["figures"]["overall"]["prompts"] == NUM_PROMPTS
        assert row["figures"]["human_eval"]["end_to_end_speedup"]["value"] > 0
    left_out = {left["name"] for left in report["left_out"]}
    assert left_out == {name for name, row in BY_NAME.items() if row.is_default and name not in ROWS}
    assert "## human_eval" in (finished / MARKDOWN_NAME).read_text()


def test_an_assistant_keeps_its_gradients_without_which_it_would_be_slow(files: dict[str, str]) -> None:
    decoder = SimpleNamespace(target=load_target(files["target"])[0], tokenizer=None)
    assistant = load_assistant(files["assistant"], decoder)
    assert all(parameter.requires_grad for parameter in assistant.parameters())
    assert assistant.generation_config.eos_token_id is None


def test_a_tree_is_cut_to_what_a_drafter_can_draft(finished: Path) -> None:
    trees = {row["row"]: row["tree"] for row in read(finished)["rows"]}
    assert trees["in-context"] == [4, 3, 8]
    assert trees["medusa-full"] == [3, 3, 8]
    assert trees["transformers"] is trees["autoregressive"] is None


def test_a_run_that_is_complete_is_read_again_and_one_of_other_settings_refused(files, finished, tmp_path) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    state, report = (out / STATE_NAME).read_bytes(), read(out)
    assert invoke(files, out).exit_code == 0
    assert (out / STATE_NAME).read_bytes() == state
    assert {**read(out), "command": None} == {**report, "command": None}
    refused = invoke(files, out, "--row", "full")
    assert refused.exit_code == 2
    assert "resume must be of a run with the same rows" in refused.stderr


def test_an_answer_that_is_not_the_targets_ends_with_status_1(files, finished, tmp_path) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    header, *records = [json.loads(line) for line in (out / STATE_NAME).read_text().splitlines()]
    records = [record for record in records if not record["run"].endswith("/check")]
    broken = next(record for record in records if record["run"] == "1/in-context")
    broken["token_ids"][5] = (broken["token_ids"][5] + 1) % 256
    (out / STATE_NAME).write_text("".join(json.dumps(record) + "\n" for record in (header, *records)))
    result = invoke(files, out)
    assert result.exit_code == 1
    assert "WRONG: in-context, prompt 2 (rag), token 6" in result.stderr
    assert [row["row"] for row in read(out)["rows"] if not row["is_right"]] == ["in-context"]


@pytest.fixture(scope="module")
def answers(files: dict[str, str], tmp_path_factory) -> dict[str, list[int]]:
    """Plain decoding's in float32, by the ids of the prompt as JSON."""
    out = tmp_path_factory.mktemp("plain")
    assert invoke(files, out, "--dtype", "float32", "--row", "autoregressive").exit_code == 0
    plain = {record["run"]: record for record in map(json.loads, (out / STATE_NAME).read_text().splitlines()[1:])}
    decoder = SpeculativeDecoder.from_pretrained(files["target"], files["draft"])
    prompts = read_prompt_set(decoder, [Path(files["prompts"])], None, 1).prompts
    return {
        json.dumps(prompt.input_ids[0].tolist()): plain[f"{number}/autoregressive"]["token_ids"]
        for number, prompt in enumerate(prompts)
    }


class TestVllm:
    """With a stand-in for its processes, which says what plain decoding has said."""

    def run(self, files, out: Path, answers, *more: str, **plan) -> Result:
        python = write_interpreter(out.parent, answers, **plan)
        rows = [part for name in VLLM_ROWS for part in ("--row", name)]
        return invoke(files, out, "--vllm", python, "--dtype", "float32", *rows, *more)

    def test_its_rows_are_measured_right_and_configured_in_the_report(self, files, answers, tmp_path):
        out = tmp_path / "out"
        result = self.run(files, out, answers)
        assert result.exit_code == 0, result.output
        report = read(out)
        assert [row["row"] for row in report["rows"]] == ["autoregressive", *VLLM_ROWS]
        assert all(row["is_right"] for row in report["rows"])
        assert [row["tree"] for row in report["rows"][2:]] == [[4, 1, 5]] * 2
        assert report["rows"][3]["figures"]["overall"]["relative_accept_length"]["value"] == 1
        assert report["vllm"]["versions"] == {"vllm-fake": "9.9", "python": "3.11"}
        assert list(report["vllm"]["rows"]) == list(VLLM_ROWS)
        logs = {name: (out / f"{name}.log").read_bytes() for name in VLLM_ROWS}
        again = self.run(files, out, answers)  # which starts no process
        assert again.exit_code == 0
        assert {name: (out / f"{name}.log").read_bytes() for name in VLLM_ROWS} == logs

    def test_chains_are_measured_once_and_kept(self, files, answers, tmp_path):
        out = tmp_path / "out"
        for _ in range(2):
            assert self.run(files, out, answers, "--tree", "auto", "--row", "vllm").exit_code == 0
        assert read(out)["rows"][2]["tree"] == [3, 1, 4]
        assert len((out / "vllm-eagle.log").read_text().splitlines()) == 5  # four chains, and the run

    def test_a_wrong_token_ends_with_status_1(self, files, answers, tmp_path):
        result = self.run(files, tmp_path / "out", answers, do={"vllm-nanospec": "wrong"})
        assert result.exit_code == 1
        assert "WRONG: vllm-nanospec, prompt 1 (qa), token 24" in result.stderr
        wrong = [row["row"] for row in read(tmp_path / "out")["rows"] if not row["is_right"]]
        assert wrong == ["vllm-nanospec"]

    def test_a_crash_is_one_line_and_what_was_measured_is_kept(self, files, answers, tmp_path):
        out = tmp_path / "out"
        result = self.run(files, out, answers, do={"vllm-eagle": "crash"})
        assert result.exit_code == 2
        assert "error: vllm-eagle ended with exit status 1; the end of" in result.stderr
        assert "out of cheese" in result.stderr
        assert self.run(files, out, answers).exit_code == 0

    def test_another_version_is_another_run(self, files, answers, tmp_path):
        out = tmp_path / "out"
        assert self.run(files, out, answers).exit_code == 0
        newer = DESCRIBED | {"versions": {"vllm-fake": "10.0"}}
        result = self.run(files, out, answers, described=newer)
        assert result.exit_code == 2
        assert "resume must be of a run with the same vllm_environment" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--row", "fast"], "row must be one of autoregressive"),
        (["--row", "routed"], "row routed cannot take part: --router was not given"),
        (["--row", "vllm"], "row vllm cannot take part: --vllm was not given"),
        (["--vllm", "no/such/python"], "vllm must be a Python interpreter, but no/such/python is no program"),
        (["--max-new-tokens", "1"], "max-new-tokens must be at least 2, got 1"),
        (["--tree", "deep"], "tree must be 'auto'"),
        (["--tree", "2,300,301"], "tree branching must be at most 256"),
        (["--row", "eagle3-full", "--eagle3", "no/such/draft"], "no/such/draft"),
        (["--assistant", "no/such/model"], "no/such/model"),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing_behind(files, tmp_path, options, message) -> None:
    result = invoke(files, tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
