"""Pictures of a finished report: speed-up per task, where a step's time goes, and which ids a text takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.suite.decoded import STAGES
from bench.suite.report import OVERALL
from bench.suite.rows import FULL, PEERS, VLLM_NANOSPEC, VLLM_ROWS
from nanospec.cli.measure import AUTOREGRESSIVE
from nanospec.coverage.pareto_plot import COLOURS, DOTS_PER_INCH, FORMATS, WIDTH_INCHES, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SPEEDUP, STEP_TIME, LOCALITY = "speedup_per_task", "step_time", "locality"
PANELS_PER_LINE, BAR_INCHES, PANEL_FRAME_INCHES, LEAST_BARS = 4, 0.2, 0.75, 5
BLUE, ORANGE, GREEN, *_ = COLOURS
GREY = "#888888"
# Colour and hatch say the same: which stage, and for the first picture whose row.
STAGE_LOOKS = {"draft": (BLUE, ""), "verify": (GREY, ""), "vocabulary": (ORANGE, "////"), "other": (GREEN, "....")}
OURS, OURS_FULL, THEIRS = "our engine", "our engine, full vocabulary", "transformers"
IN_VLLM, OURS_IN_VLLM = "vLLM", "vLLM with our plugin"
KINDS = {
    OURS: (BLUE, ""), OURS_FULL: (COLOURS[5], ".."), THEIRS: (COLOURS[4], "////"), IN_VLLM: (COLOURS[3], "\\\\\\\\"),
    OURS_IN_VLLM: (COLOURS[2], "xx"),
}  # fmt: skip
MARKER_AREA = 9


def draw_all(report: Mapping[str, Any], out: Path) -> list[Path]:
    """Every picture that the report has figures for, as SVG and PNG."""
    figures: dict[str, Figure] = {}
    drawn = [row for row in report["rows"] if row["is_right"] and row["row"] != AUTOREGRESSIVE]
    if drawn:
        figures[SPEEDUP] = speedup_figure(drawn, list(report["prompts"]["tasks"]))
    staged = [row for row in report["rows"] if row["is_right"] and row["figures"][OVERALL]["stage_ms_per_step"]]
    if staged:
        figures[STEP_TIME] = step_time_figure(staged)
    if report["locality"] is not None:
        figures[LOCALITY] = locality_figure(report["locality"])
    paths = [(figure, out / f"{name}{suffix}") for name, figure in figures.items() for suffix in FORMATS]
    for figure, path in paths:
        save_figure(figure, path)
    return [path for _, path in paths]


def speedup_figure(rows: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> Figure:
    """A panel per task and one over all prompts; a bar per row, with its interval."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    parts = [OVERALL, *tasks]
    num_lines = -(-len(parts) // PANELS_PER_LINE)
    height = num_lines * (PANEL_FRAME_INCHES + BAR_INCHES * max(len(rows), LEAST_BARS))
    figure = Figure(figsize=(WIDTH_INCHES, height), dpi=DOTS_PER_INCH, layout="constrained")
    panels = figure.subplots(num_lines, min(PANELS_PER_LINE, len(parts)), sharex=True, sharey=True, squeeze=False)
    for axes, part in zip(panels.flat, parts, strict=False):
        _draw_speedups(axes, rows, part)
    for axes in panels.flat[len(parts) :]:
        axes.set_axis_off()
    panels[0, 0].set_yticks(range(len(rows)), [row["row"] for row in rows], fontsize=8)
    panels[0, 0].invert_yaxis()
    figure.supxlabel("speed-up over plain decoding, median over prompts and 95 % interval", fontsize=9)
    kinds = [kind for kind in KINDS if any(_kind_of(row) == kind for row in rows)]
    handles = [Patch(facecolor=KINDS[kind][0], hatch=KINDS[kind][1], edgecolor="white", label=kind) for kind in kinds]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(kinds), fontsize=9, frameon=False)
    return figure


def step_time_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Milliseconds per step, stacked by stage; behind each bar how many tokens such a step yields."""
    figure = new_figure()
    figure.set_figheight(1.1 + 0.28 * len(rows))
    axes = figure.add_subplot()
    names = [row["row"] for row in rows]
    stages = [row["figures"][OVERALL]["stage_ms_per_step"] for row in rows]
    left = [0.0] * len(rows)
    for stage in STAGES:
        colour, hatch = STAGE_LOOKS[stage]
        widths = [spent[stage] for spent in stages]
        axes.barh(names, widths, left=left, color=colour, hatch=hatch, edgecolor="white", linewidth=0.4, label=stage)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, (row, end) in enumerate(zip(rows, left, strict=True)):
        length = row["figures"][OVERALL]["accept_length"]["value"]
        axes.text(end, place, f"  {end:.1f} ms, {length:.2f} tokens", va="center", fontsize=8)
    axes.set_xlim(0, 1.3 * max(left))
    axes.invert_yaxis()
    axes.set_xlabel("ms per step")
    axes.tick_params(axis="y", labelsize=8)
    figure.legend(loc="outside upper center", ncols=len(STAGES), fontsize=9, frameon=False)
    return figure


def locality_figure(locality: Mapping[str, Any]) -> Figure:
    """Every token of one generation at the number of its id in order of entry into the vocabulary."""
    figure = new_figure()
    axes = figure.add_subplot()
    hits: list[tuple[int, int]] = []
    misses: list[tuple[int, int]] = []
    place, edges, entered, active = 0, [0], [], []
    for step in locality["steps"]:
        for number, is_hit in step["tokens"]:
            (hits if is_hit else misses).append((place, step["num_entered"] if number is None else number))
            place += 1
        edges.append(place)
        entered.append(step["num_entered"])
        active.append(step["num_active"])
    axes.stairs(entered, edges, fill=True, color="#E4E4E4", label="ids entered so far")
    axes.stairs(active, edges, color="black", linewidth=1, label="ids held by the vocabulary")
    for points, colour, marker, label in ((hits, BLUE, "o", "hit"), (misses, ORANGE, "x", "miss")):
        across, up = zip(*points, strict=True) if points else ((), ())
        text = f"{label}: {len(points)} of {place} tokens"
        axes.scatter(across, up, s=MARKER_AREA * (2 if label == "miss" else 1), c=colour, marker=marker, label=text)
    axes.set_xlabel("generated token")
    axes.set_ylabel(f"ids of {locality['vocab_size']:,}, in order of entry")
    axes.set_xlim(0, place)
    axes.set_ylim(0, None)
    figure.legend(loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    return figure


def _draw_speedups(axes: Axes, rows: Sequence[Mapping[str, Any]], part: str) -> None:
    for place, row in enumerate(rows):
        speedup = row["figures"][part]["speedup"]
        if speedup is None:
            continue
        value, colour_and_hatch = speedup["value"], KINDS[_kind_of(row)]
        error = [[value - speedup["low"]], [speedup["high"] - value]]
        axes.barh(place, value, color=colour_and_hatch[0], hatch=colour_and_hatch[1], edgecolor="white", linewidth=0.3)
        axes.errorbar(value, place, xerr=error, color="black", elinewidth=0.9, capsize=1.5)
    axes.axvline(1, color="black", linewidth=0.8, linestyle="--")
    axes.set_title(part.replace("_", " "), fontsize=9)
    axes.grid(axis="x", alpha=0.25)
    axes.tick_params(labelsize=8)


def _kind_of(row: Mapping[str, Any]) -> str:
    if row["row"] in PEERS:
        return THEIRS
    if row["row"] in VLLM_ROWS:
        return OURS_IN_VLLM if row["row"] == VLLM_NANOSPEC else IN_VLLM
    return OURS_FULL if row["row"] == FULL or row["row"].endswith(f"-{FULL}") else OURS
