"""The GPU benchmark on a CPU: every section runs, what is left out is named, a wrong kernel stops it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from bench.gpu import kernel_checks
from bench.gpu.__main__ import app
from bench.gpu.deadline import Deadline
from bench.gpu.kernel_checks import KERNEL_CHECKS, WrongResultError
from bench.gpu.plots import NO_MATPLOTLIB, PLOTS, draw_plots
from bench.gpu.run_context import BenchRun
from bench.gpu.section_table import SECTIONS
from bench.gpu.sizes import SIZES
from bench.gpu.targets import Target, judge_targets
from bench.gpu.timing import Quartiles
from bench.gpu.trained import app as trained_app
from bench.gpu.trained_pair import split_documents
from nanospec.acceptance import accept_greedy
from nanospec.ops.gathered_linear import gathered_linear
from nanospec.ops.gathered_topk_logprob import gathered_topk_logprob
from nanospec.training.corpus import TokenizedCorpus
from nanospec.tree_layout import tree_layout

TINY = ("--device", "cpu", "--shapes", "tiny")
WORDS = "the town library opened again on Monday after a long winter and many people came to read".split()


def invoke(out: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["--out", str(out), *TINY, *options])


def read_report(out: Path) -> dict:
    return json.loads((out / "gpu.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("gpu")
    result = invoke(out)
    assert result.exit_code == 0, result.output
    return out


def all_timings(figures: dict) -> list[dict]:
    """Every nested object that holds a median."""
    nested = [timing for value in figures.values() if isinstance(value, dict) for timing in all_timings(value)]
    return [figures, *nested] if "median_us" in figures else nested


def test_every_section_of_a_run_has_figures(finished: Path) -> None:
    sections = read_report(finished)["sections"]
    assert list(sections) == list(SECTIONS)
    for name, parts in sections.items():
        assert parts
        for figures in parts.values():
            assert "skipped" not in figures
            assert name == "correctness" or all_timings(figures)
            for timing in all_timings(figures):
                assert 0 < timing["lower_quartile_us"] <= timing["median_us"] <= timing["upper_quartile_us"]


def test_report_names_machine_command_settings_and_plots(finished: Path) -> None:
    report = read_report(finished)
    assert {"cpu", "torch", "triton", "device", "dtype"} <= set(report["machine"])
    assert report["command"].startswith("python -m bench.gpu")
    assert report["settings"]["shapes"] == "tiny"
    for name in PLOTS:
        drawn = report["plots"][name]
        assert drawn == f"skipped: {NO_MATPLOTLIB}" or (finished / drawn).exists()
    assert not list(finished.glob("*.partial"))


def test_table_shows_targets_and_assumed_accept_lengths(finished: Path) -> None:
    table = (finished / "gpu.md").read_text()
    assert "| draft time in-context / full, llama-3.1-8b | <= 0.38 | - | not measured |" in table
    assert "tokens_per_s_at_assumed_accept_length" in table
    assert all(f"## {name}" in table for name in SECTIONS)


def test_plots_are_drawn_from_a_report(finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for drawn in draw_plots(tmp_path, read_report(finished)["sections"]).values():
        assert (tmp_path / drawn).stat().st_size > 0


def test_wrong_kernel_fails_before_anything_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments):
        return gathered_linear(*arguments) + 0.5

    def never(*_):
        raise AssertionError("timed although a kernel is wrong")

    monkeypatch.setattr(kernel_checks, "gathered_linear", wrong)
    monkeypatch.setattr("bench.gpu.run_context.time_replays", never)
    result = invoke(tmp_path)
    assert result.exit_code == 1
    assert "gathered_linear: largest error 0.5" in result.output
    sections = read_report(tmp_path)["sections"]
    assert "largest error" in sections["correctness"]["gathered_linear"]["failed"]
    assert not any(sections[name] for name in SECTIONS if name != "correctness")


def _worse_best(*arguments):
    ids, log_prob = gathered_topk_logprob(*arguments)
    return ids.roll(1, -1), log_prob


def _deeper(parent_pos: torch.Tensor, max_depth: int):
    ancestors, depth = tree_layout(parent_pos, max_depth)
    return ancestors, depth + 1


def _greedy_without_bonus(tree, best_id, max_depth):
    return accept_greedy(tree, best_id, max_depth)._replace(next_id=best_id[:, -1])


@pytest.mark.parametrize(
    ("kernel", "wrong", "check"),
    [
        ("gathered_topk_logprob", _worse_best, "gathered_topk_logprob"),
        ("tree_layout", _deeper, "tree_layout"),
        ("accept_greedy", _greedy_without_bonus, "accept_greedy"),
        ("blocked_topk", lambda logits, k: logits.topk(k, largest=False), "blocked_topk"),
    ],
)
def test_each_check_notices_a_wrong_kernel(kernel, wrong, check, monkeypatch: pytest.MonkeyPatch) -> None:
    run = BenchRun(SIZES["tiny"], torch.device("cpu"), torch.float32)
    KERNEL_CHECKS[check](run)
    monkeypatch.setattr(kernel_checks, kernel, wrong)
    with pytest.raises(WrongResultError):
        KERNEL_CHECKS[check](run)


def test_sections_that_are_not_asked_for_are_named(tmp_path: Path) -> None:
    assert invoke(tmp_path, "--sections", "copy").exit_code == 0
    sections = read_report(tmp_path)["sections"]
    assert "median_us" in sections["copy"]["device"]
    others = [figures for name, parts in sections.items() if name != "copy" for figures in parts.values()]
    assert others
    assert all(figures == {"skipped": "not asked for"} for figures in others)


def test_sections_that_do_not_fit_are_named_with_the_time_they_need(tmp_path: Path) -> None:
    assert invoke(tmp_path, "--limit-s", "1e-9").exit_code == 0
    for parts in read_report(tmp_path)["sections"].values():
        assert all("0 s of 0 s left" in figures["skipped"] for figures in parts.values())
    assert Deadline(100.0).refusal(40.0) is None
    assert Deadline(30.0).refusal(40.0) == "needs about 40 s, 30 s of 30 s left"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sections", "kernel"), "sections must be of correctness, copy"),
        (("--shapes", "huge"), "shapes must be one of real, tiny, got 'huge'"),
        (("--device", "tpu"), "device must be one of cuda, cpu, got 'tpu'"),
        (("--limit-s", "0"), "limit-s must be above 0, got 0"),
    ],
)
def test_options_out_of_range_are_refused_by_name(tmp_path: Path, options, message: str) -> None:
    result = invoke(tmp_path, *options)
    assert result.exit_code == 2
    assert message in result.output
    assert not list(tmp_path.iterdir())


def test_verdict_tells_by_how_much_a_target_is_missed() -> None:
    assert Target("ratio", 0.4, True, 0.5, "").verdict == "missed by 1.25x"
    assert Target("speed-up", 1.5, False, 1.2, "").verdict == "missed by 1.25x"
    assert Target("speed-up", 1.5, False, 1.6, "").verdict == "met"
    assert Target("ratio", 0.4, True, None, "").verdict == "not measured"


def test_targets_are_judged_by_the_fastest_way_and_the_step_of_the_graph() -> None:
    def sides(**medians: float) -> dict:
        return {name.replace("_", " "): {"median_us": value} for name, value in medians.items()}

    ways = {"full": 100.0, "static": 60.0, "packed": 35.0, "indexed": 40.0, "indexed_fused": 30.0, "head_deleted": 20.0}
    upkeep = {"vocabulary update": {"median_us": 10.0}, "tree": {"median_us": 20.0}, "accept": {"median_us": 5.0}}
    eager = {"full, graph off": {"median_us": 900.0}, "in-context, graph off": {"median_us": 800.0}}
    graph = {"full, graph on": {"median_us": 700.0}, "in-context, graph on": {"median_us": 350.0}}
    by_size = {
        str(size): {"in-context with upkeep": {"median_us": median}} for size, median in ((2**15, 50), (2**18, 60))
    }
    judged = judge_targets(
        {
            "draft": {"llama-3.1-8b": {"draft": sides(**ways), "level": sides(**ways), "upkeep": upkeep}},
            "step": {"llama-3.1-8b": eager | graph},
            "scaling": {"vocab_size": by_size},
        }
    )
    values = {target.name: target.value for target in judged}
    assert values["draft time in-context / full, llama-3.1-8b"] == pytest.approx(0.3)
    assert values["draft level in-context / head deleted, llama-3.1-8b"] == pytest.approx(1.5)
    assert values["step full / in-context, llama-3.1-8b"] == pytest.approx(2.0)
    assert values["vocabulary upkeep + tree + accept, share of step, llama-3.1-8b"] == pytest.approx(0.1)
    assert values["in-context draft + upkeep, V 256k / V 32k"] == pytest.approx(1.2)
    assert values["step full / in-context, llama-3.2-1b"] is None


def test_quartiles_of_one_sample_are_that_sample() -> None:
    assert Quartiles.of([2.0]) == (2.0, 2.0, 2.0)
    assert Quartiles.of([4.0, 8.0, 12.0]).divided_by(4) == (1.0, 2.0, 3.0)


def test_held_out_documents_are_not_trained_on() -> None:
    tokens = np.arange(60, dtype=np.int32)
    starts = np.asarray([0, 5, 15, 20, 40, 52, 60])
    corpus = TokenizedCorpus(tokens, starts, starts[:-1] + 2, list("abcdef"))
    training, held_out = split_documents(corpus, 2)
    assert sorted([*training.tokens, *held_out.tokens]) == tokens.tolist()
    assert len(held_out.categories) == 2
    for part in (training, held_out):
        for row in range(len(part.categories)):
            original = "abcdef".index(part.categories[row])
            assert torch.equal(part.document(row), corpus.document(original))
            assert part.prompt_length(row) == 2


def test_trained_pair_gives_speed_and_accept_length_together(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    records = [
        {"prompt": " ".join(generator.choice(WORDS, 6)), "response": " ".join(generator.choice(WORDS, 14))}
        for _ in range(40)
    ]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join(json.dumps(record) for record in records))
    options = [
        "--corpus",
        str(corpus),
        "--out",
        str(tmp_path),
        "--device",
        "cpu",
        "--size",
        "tiny",
        "--minutes",
        "0.05",
    ]
    result = CliRunner().invoke(trained_app, options)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "trained.json").read_text())
    assert report["documents"] == {"training": 36, "held_out": 4}
    assert report["training"]["target"]["steps"] >= 1
    for section in ("real_contexts", "free_text_at_temperature_1"):
        for vocab in ("full", "static:32768", "in-context"):
            figures = report[section][vocab]
            assert figures["tokens_per_s"] > 0
            assert figures["accept_length"] >= 1
    assert "| in-context |" in (tmp_path / "trained.md").read_text()
