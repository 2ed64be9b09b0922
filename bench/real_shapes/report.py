"""One JSON object with every figure, one markdown table per stage with the bars first; both written whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from bench.gpu.report import write_text
from bench.real_shapes.sizes import FULL, HEADLESS, HYBRID, SATURATED
from bench.real_shapes.stages import DRAFT, LEVEL, STEP

JSON_NAME, MARKDOWN_NAME = "real_shapes.json", "real_shapes.md"
SMALL_STAGES = ("step: vocabulary", "step: other")  # a few percent of a step: shown, not judged
MAX_ERROR = 0.20  # of a prediction, relative to the median measured


class Bar(NamedTuple):
    """What a pair is held to."""

    name: str
    value: float
    bound: float
    at_most: bool

    @property
    def is_met(self) -> bool:
        return self.value <= self.bound if self.at_most else self.value >= self.bound


def bars(stages: dict[str, Any]) -> list[Bar]:
    """Of one pair, for the hybrid vocabulary at its rows on text and with all slots used."""
    found = []
    for side in (HYBRID, SATURATED):
        median = {
            stage: {name: row["median_ms"] for name, row in stages[stage].items()} for stage in (LEVEL, DRAFT, STEP)
        }
        found += [
            Bar(f"{side}: draft time over full's", median[DRAFT][side] / median[DRAFT][FULL], 0.30, True),
            Bar(f"{side}: draft level over no head", median[LEVEL][side] / median[LEVEL][HEADLESS], 1.15, True),
            Bar(f"{side}: step of full over its own", median[STEP][FULL] / median[STEP][side], 1.5, False),
        ]
    return found


def worst_errors(stages: dict[str, Any]) -> dict[str, float]:
    """Largest relative error of a prediction, by stage that counts: what is left of a step is small."""
    judged = {stage: rows for stage, rows in stages.items() if stage not in SMALL_STAGES}
    return {stage: max((row["error"] for row in rows.values()), key=abs) for stage, rows in judged.items()}


def write_report(out: Path, report: dict[str, Any]) -> None:
    write_text(out / JSON_NAME, json.dumps(report, indent=2) + "\n")
    write_text(out / MARKDOWN_NAME, as_markdown(report))


def as_markdown(report: dict[str, Any]) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    lines = ["# Real shapes on a CPU, random weights", "", machine, "", f"    {report['command']}", ""]
    for name, pair in report["pairs"].items():
        lines += [f"## {name}", f"tree {pair['tree']}, context {report['context_length']}; {pair['tree_source']}", ""]
        lines += [
            f"The machine was calibrated before: afterwards it would predict {pair['drift']:.2f} times the step.",
            "",
        ]
        lines += _bar_rows(pair["stages"])
        lines += _stage_rows(pair["stages"])
        lines += _rate_rows(pair["tokens_per_s"])
    for axis, growth in report["growth"].items():
        lines += [f"## draft by {axis}", "", *_stage_rows(growth)]
    lines += [f"plots: {', '.join(report['plots'])}" if report["plots"] else "no plots", ""]
    return "\n".join(lines)


def _bar_rows(stages: dict[str, Any]) -> list[str]:
    rows = ["| bar | bound | measured | met |", "|---|---|---|---|"]
    for bar in bars(stages):
        sign = "<=" if bar.at_most else ">="
        rows.append(f"| {bar.name} | {sign} {bar.bound:g} | {bar.value:.3f} | {'yes' if bar.is_met else 'NO'} |")
    return [*rows, ""]


def _stage_rows(stages: dict[str, Any]) -> list[str]:
    rows = ["| stage | side | median ms | quartiles | predicted | off by |", "|---|---|---|---|---|---|"]
    for stage, sides in stages.items():
        for side, row in sides.items():
            spread = f"{row['lower_quartile_ms']:.2f} .. {row['upper_quartile_ms']:.2f}"
            mark = " (!)" if abs(row["error"]) > MAX_ERROR and stage not in SMALL_STAGES else ""
            cells = f"{row['median_ms']:.2f} | {spread} | {row['predicted_ms']:.2f} | {100 * row['error']:+.0f} %{mark}"
            rows.append(f"| {stage} | {side} | {cells} |")
    return [*rows, ""]


def _rate_rows(table: dict[str, dict[str, Any]]) -> list[str]:
    sides = list(next(iter(table.values())))
    rows = ["tokens/s at accept lengths that were not measured here, equal for all sides:", ""]
    rows += [f"| accept length of | {' | '.join(sides)} |", "|---" * (len(sides) + 1) + "|"]
    rows += [f"| {source} | {' | '.join(str(row[side]) for side in sides)} |" for source, row in table.items()]
    return [*rows, ""]
