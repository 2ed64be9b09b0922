"""The report: every figure as one JSON object, and tables in markdown for readers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.suite.decoded import STAGES
from bench.suite.measuring import results_of
from bench.suite.rows import BY_NAME, full_row_of
from bench.suite.statistics import summarize
from nanospec.cli.measure import AUTOREGRESSIVE, Difference
from nanospec.coverage.state_file import StateFile
from nanospec.tree_shape import TreeShape

OVERALL = "overall"
WRONG = "WRONG"
HEADINGS = (
    "row", "tokens/s", "speed-up", "end to end", "accept length", "of full", "rows", "ms/step", *STAGES, "TTFT ms",
    "TTFT of plain", "near ties",
)  # fmt: skip
OTHER_TREE = "*"
VLLM_TIMING = (
    "One request at a time, in a process per row that idles while others run; the clock is around the engine in it, so "
    "that what the processes tell each other is not counted. The prefix cache is off: every prompt runs more than "
    "once, and the other rows have none."
)


def build_rows(
    names: Sequence[str],
    tasks: Sequence[str],
    state: StateFile,
    trees: Mapping[str, TreeShape],
    differences: Sequence[Difference],
) -> list[dict[str, Any]]:
    """A row per name, plain decoding first. tasks: of every prompt. A row with a token that rounding does not explain
    has no figures: `is_right` is False and `figures` None."""
    rows = []
    for name in names:
        own = [difference for difference in differences if difference.vocab == name]
        is_right, tree = all(difference.near_tie for difference in own), trees.get(name)
        full_name = full_row_of(BY_NAME[name])
        full = full_name if full_name in names else None
        rows.append(
            {
                "row": name,
                "stands_for": BY_NAME[name].stands_for,
                "tree": None if tree is None else list(tree),
                "full_row": full,
                "has_tree_of_full": None if full is None else trees[full] == tree,
                "is_right": is_right,
                "near_ties": sum(difference.near_tie for difference in own),
                "figures": _figures(name, full, tasks, state) if is_right else None,
            }
        )
    return rows


def _figures(name: str, full: str | None, tasks: Sequence[str], state: StateFile) -> dict[str, Any]:
    """By OVERALL and by task."""
    figures = {}
    for part in (OVERALL, *dict.fromkeys(tasks)):
        numbers = [number for number, task in enumerate(tasks) if part in (OVERALL, task)]
        own, plain = (results_of(row, numbers, state) for row in (name, AUTOREGRESSIVE))
        figures[part] = summarize(own, plain, results_of(full, numbers, state) if full else None)
    return figures


def as_markdown(report: Mapping[str, Any]) -> str:
    rows, prompts = report["rows"], report["prompts"]
    machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    tasks = ", ".join(f"{task} {count}" for task, count in prompts["tasks"].items())
    lines = ["# Suite", "", machine, "", f"    {report['command']}", ""]
    lines += [f"{sum(prompts['tasks'].values())} prompts ({tasks}), {prompts['max_new_tokens']} new tokens each.", ""]
    lines += [*_wrong_lines(report), *_table(rows, OVERALL), "", "## Speed-up per task", "", *_speedups(rows)]
    for task in prompts["tasks"]:
        lines += ["", f"## {task}", "", *_table(rows, task)]
    lines += ["", "## Rows", ""]
    lines += [f"- {row['row']}: {row['stands_for']}{_tree_note(row)}" for row in rows]
    lines += [f"- left out, {out['name']}: {out['reason']}" for out in report["left_out"]]
    lines += [] if report["vllm"] is None else ["", "## vLLM", "", *_vllm_lines(report["vllm"])]
    return "\n".join(lines) + "\n"


def headline(report: Mapping[str, Any]) -> list[str]:
    """The overall table, and what is wrong."""
    return [*_wrong_lines(report), *_table(report["rows"], OVERALL)]


def describe_difference(difference: Difference, task: str) -> str:
    """One line about tokens that are not the target's own."""
    margin = "no near-tie" if difference.margin is None else f"margin {difference.margin:.3g}"
    place = f"prompt {difference.prompt + 1} ({task}), token {difference.position + 1}"
    return f"{WRONG}: {difference.vocab}, {place}: {margin}, near-tie below {difference.bound:.3g}"


def _wrong_lines(report: Mapping[str, Any]) -> list[str]:
    wrong = [row["row"] for row in report["rows"] if not row["is_right"]]
    return [f"**{WRONG}: {', '.join(wrong)} differ from plain decoding.**", ""] if wrong else []


def _table(rows: Sequence[Mapping[str, Any]], part: str) -> list[str]:
    return _as_table([HEADINGS, *(_cells(row, part) for row in rows)])


def _as_table(lines: Sequence[Sequence[str]]) -> list[str]:
    texts = ["| " + " | ".join(cells) + " |" for cells in lines]
    return [texts[0], "|" + "---|" * len(lines[0]), *texts[1:]]


def _cells(row: Mapping[str, Any], part: str) -> list[str]:
    if not row["is_right"]:
        return [row["row"], *[WRONG] * (len(HEADINGS) - 1)]
    figures = row["figures"][part]
    is_own = row["row"] == row["full_row"]
    note = OTHER_TREE if row["has_tree_of_full"] is False else ""
    stages = figures["stage_ms_per_step"]
    return [
        row["row"],
        _estimate(figures["tokens_per_second"], "{:.1f}"),
        _estimate(figures["speedup"], "{:.2f}x"),
        _estimate(figures["end_to_end_speedup"], "{:.2f}x"),
        _estimate(figures["accept_length"], "{:.2f}"),
        "100 %" if is_own else _estimate(figures["relative_accept_length"], "{:.1%}") + note,
        _number(figures["active_rows"], "{:,.0f}"),
        _number(figures["ms_per_step"], "{:.2f}"),
        *(_number(stages and stages[stage], "{:.2f}") for stage in STAGES),
        _estimate(figures["ttft_ms"], "{:.0f}"),
        _estimate(figures["ttft_ratio"], "{:.2f}x"),
        str(row["near_ties"]) if part == OVERALL else "",
    ]


def _speedups(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    parts = list(next(row for row in rows if row["is_right"])["figures"])
    lines = [["row", *parts[1:], parts[0]]]
    for row in rows:
        cells: Iterator[str] = (
            _estimate(row["figures"][part]["speedup"], "{:.2f}x") if row["is_right"] else WRONG for part in lines[0][1:]
        )
        lines.append([row["row"], *cells])
    return _as_table(lines)


def _tree_note(row: Mapping[str, Any]) -> str:
    if row["tree"] is None:
        return ""
    depth, branching, num_nodes = row["tree"]
    shape = f"chain of {depth}" if branching == 1 else f"tree {depth}, {branching}, {num_nodes}"
    note = "; accept length relative to a row with another tree" if row["has_tree_of_full"] is False else ""
    return f" ({shape}{note})"


def _vllm_lines(vllm: Mapping[str, Any]) -> list[str]:
    """What its rows ran with, and how they were timed."""
    versions = ", ".join(f"{name} {version}" for name, version in vllm["versions"].items())
    preload = ", ".join(vllm["preload"]) or "nothing"
    lines = [f"{versions}; preloaded: {preload}. {VLLM_TIMING}", ""]
    for name, settings in vllm["rows"].items():
        engine = ", ".join(f"{key}={value!r}" for key, value in settings["engine"].items())
        environment = " ".join(f"{key}={value}" for key, value in settings["environment"].items())
        lines.append(f"- {name}: `{environment}`, `LLM({engine})`")
    return lines


def _estimate(estimate: Mapping[str, float] | None, form: str) -> str:
    """The value, and the interval in brackets unless it has no width."""
    if estimate is None:
        return "-"
    value, low, high = (form.format(estimate[key]) for key in ("value", "low", "high"))
    return value if low == high == value else f"{value} ({low} .. {high})"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
