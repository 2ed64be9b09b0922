from __future__ import annotations

import copy

import pytest

from bench.suite.decoded import STAGES, Decoded
from bench.suite.measuring import run_key
from bench.suite.plots import LOCALITY, SPEEDUP, STEP_TIME, draw_all
from bench.suite.report import as_markdown, build_rows, describe_difference, headline
from nanospec.cli.measure import Difference
from nanospec.coverage.state_file import StateFile
from nanospec.tree_shape import TreeShape

NAMES = ("autoregressive", "transformers", "full", "eagle3-full", "in-context")
TASKS = ("qa", "rag", "qa")
TREES = {"full": TreeShape(5, 8, 32), "eagle3-full": TreeShape(5, 8, 32), "in-context": TreeShape(7, 8, 16)}
# Seconds behind the first token per prompt, steps of it; 8 tokens follow the first.
SPEEDS = {
    "autoregressive": (8, 8),
    "transformers": (16, 8),
    "full": (8, 2),
    "eagle3-full": (4, 4),
    "in-context": (2, 4),
}
NEAR_TIE = Difference("full", 1, 3, 0.1, 0.5, True)
DIFFERENT = Difference("in-context", 1, 3, 2.0, 0.5, False)


def state():
    kept = StateFile(None, {}, key="run")
    for number in range(len(TASKS)):
        for name in NAMES:
            seconds, steps = SPEEDS[name]
            drafts = name in TREES
            stages = dict.fromkeys(STAGES, seconds / 4) if name != "transformers" else None
            rows = 100 * steps if drafts else None
            decoded = Decoded(list(range(9)), seconds + 1, 1.0, 1, steps, 8, rows, stages)
            kept.add({"run": run_key(number, name), **decoded._asdict()})
    return kept


def report(differences=()):
    steps = [
        {"num_active": 4, "num_entered": 6, "tokens": [[0, True], [None, False]]},
        {"num_active": 6, "num_entered": 7, "tokens": [[5, True]]},
    ]
    return {
        "command": "python -m bench.suite",
        "machine": {"cpu": "a cpu", "threads": 2},
        "prompts": {"tasks": {"qa": 2, "rag": 1}, "too_long": {}, "max_new_tokens": 9},
        "rows": build_rows(NAMES, TASKS, state(), TREES, differences),
        "left_out": [{"name": "routed", "reason": "--router was not given"}],
        "locality": {"vocab_size": 61, "steps": steps},
        "vllm": None,
    }


def table_rows(markdown):
    lines = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("| ")]
    return {cells[0]: cells for cells in lines[: 1 + len(NAMES)]}


def test_every_row_has_figures_over_all_and_per_task():
    rows = {row["row"]: row for row in report()["rows"]}
    assert list(rows) == list(NAMES)
    for row in rows.values():
        assert list(row["figures"]) == ["overall", "qa", "rag"]
        assert [figures["prompts"] for figures in row["figures"].values()] == [3, 2, 1]
    speedups = [rows[name]["figures"]["rag"]["speedup"]["value"] for name in NAMES]
    assert speedups == [1, 0.5, 1, 2, 4]
    relative = [rows[name]["figures"]["overall"]["relative_accept_length"] for name in NAMES]
    assert [estimate and estimate["value"] for estimate in relative] == [None, None, 1, 1, 0.5]


def test_the_table_shows_what_is_there_and_marks_another_tree():
    cells = table_rows(as_markdown(report()))
    assert cells["row"][1:7] == ["tokens/s", "speed-up", "end to end", "accept length", "of full", "rows"]
    assert cells["in-context"] == [
        "in-context", "4.0", "4.00x", "3.00x", "2.00", "50.0%*", "100", "500.00", *["125.00"] * 4, "1000", "1.00x", "0",
    ]  # fmt: skip
    assert cells["full"][5] == cells["eagle3-full"][5] == "100 %"
    assert cells["transformers"][4:] == ["1.00", "-", "-", "2000.00", *["-"] * 4, "1000", "1.00x", "0"]


def test_the_markdown_says_with_what_and_what_was_left_out():
    markdown = as_markdown(report())
    for part in (
        "a cpu", "    python -m bench.suite", "3 prompts (qa 2, rag 1), 9 new tokens", "## Speed-up per task", "## rag",
        "(tree 7, 8, 16; accept length relative to a row with another tree)",
        "- left out, routed: --router was not given",
    ):  # fmt: skip
        assert part in markdown


def test_rows_of_vllm_say_how_they_were_configured():
    trees = {"vllm-eagle": TreeShape(3, 1, 4), "vllm-nanospec": TreeShape(4, 1, 5)}
    kept = state()
    for name, tree in trees.items():
        for number in range(len(TASKS)):
            decoded = Decoded(list(range(9)), 3.0, 1.0, 1, 4, tree.num_nodes, 100)
            kept.add({"run": run_key(number, name), **decoded._asdict()})
    made = report()
    made["rows"] += build_rows(list(trees), TASKS, kept, trees, [])
    rows = {"vllm-eagle": {"environment": {"NANOSPEC_OFF": "1"}, "engine": {"dtype": "bfloat16", "seed": 0}}}
    made["vllm"] = {"versions": {"vllm": "0.32.0", "torch": "2.13.0"}, "preload": ["/a/libiomp5.so"], "rows": rows}
    markdown = as_markdown(made)
    for part in (
        "full vocabulary (chain of 3)\n", "draft (chain of 4; accept length relative to a row with another tree)",
        "## vLLM\n\nvllm 0.32.0, torch 2.13.0; preloaded: /a/libiomp5.so. One request at a time",
        "- vllm-eagle: `NANOSPEC_OFF=1`, `LLM(dtype='bfloat16', seed=0)`",
    ):  # fmt: skip
        assert part in markdown
    assert "## vLLM" not in as_markdown(report())


def test_a_near_tie_is_counted_and_figures_stay():
    made = report([NEAR_TIE])
    assert table_rows(as_markdown(made))["full"][-1] == "1"
    assert "WRONG" not in as_markdown(made)


def test_a_wrong_row_has_no_figures_and_is_named_first():
    made = report([NEAR_TIE, DIFFERENT])
    row = made["rows"][-1]
    assert (row["is_right"], row["figures"]) == (False, None)
    assert headline(made)[0] == "**WRONG: in-context differ from plain decoding.**"
    cells = table_rows(as_markdown(made))
    assert set(cells["in-context"][1:]) == {"WRONG"}
    assert cells["full"][1] != "WRONG"


def test_a_difference_is_described_by_place_and_margin():
    assert describe_difference(DIFFERENT, "rag") == (
        "WRONG: in-context, prompt 2 (rag), token 4: margin 2, near-tie below 0.5"
    )
    assert "no near-tie" in describe_difference(DIFFERENT._replace(margin=None), "rag")


@pytest.mark.parametrize("differences", [[], [DIFFERENT]])
def test_three_pictures_are_written_twice_each(tmp_path, differences):
    pytest.importorskip("matplotlib")
    made = report(differences)
    paths = draw_all(made, tmp_path)
    names = {f"{name}{suffix}" for name in (SPEEDUP, STEP_TIME, LOCALITY) for suffix in (".svg", ".png")}
    assert {path.name for path in paths} == {path.name for path in tmp_path.iterdir()} == names
    drawn = (tmp_path / f"{SPEEDUP}.svg").read_text()
    assert "<svg" in drawn
    assert (tmp_path / f"{SPEEDUP}.png").read_bytes().startswith(b"\x89PNG")


def test_without_figures_there_is_no_picture_of_them(tmp_path):
    pytest.importorskip("matplotlib")
    made = copy.deepcopy(report())
    made["rows"], made["locality"] = made["rows"][1:2], None
    assert {path.stem for path in draw_all(made, tmp_path)} == {SPEEDUP}
