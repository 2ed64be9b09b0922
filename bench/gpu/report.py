"""One JSON object with every figure and one markdown table with the targets first, both written atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bench.gpu.targets import Sections, judge_targets

JSON_NAME, MARKDOWN_NAME = "gpu.json", "gpu.md"
NOTES = {
    "step": "Random weights accept next to nothing: tokens/s are computed from the measured step and the accept "
    "length named, which is assumed.",
    "scaling": "Draft of the scaling pair; vocab_size: one draft and one vocabulary update.",
}


def write_text(path: Path, text: str) -> None:
    """The whole text or the file as it was, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_report(out: Path, about: dict[str, Any], sections: Sections) -> None:
    """gpu.json and gpu.md of what was measured so far."""
    report = {**about, "targets": [target.as_json() for target in judge_targets(sections)], "sections": sections}
    write_text(out / JSON_NAME, json.dumps(report, indent=2) + "\n")
    write_text(out / MARKDOWN_NAME, as_markdown(report))


def as_markdown(report: dict[str, Any]) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    lines = ["# GPU benchmark", "", machine, "", f"    {report['command']}", "", *_target_rows(report["targets"])]
    for name, parts in report["sections"].items():
        lines += ["", f"## {name}", *([NOTES[name], ""] if name in NOTES else [])]
        lines += ["| part | side | median us | quartiles us | more |", "|---|---|---|---|---|"]
        for part, figures in parts.items():
            lines += _part_rows(part, figures)
    return "\n".join(lines) + "\n"


def _target_rows(targets: list[dict[str, Any]]) -> list[str]:
    rows = ["| target | bound | measured | verdict | how |", "|---|---|---|---|---|"]
    for target in targets:
        bound = f"<= {target['at_most']:g}" if "at_most" in target else f">= {target['at_least']:g}"
        value = "-" if target["value"] is None else f"{target['value']:.3f}"
        rows.append(f"| {target['name']} | {bound} | {value} | {target['verdict']} | {target['how']} |")
    return rows


def _part_rows(part: str, figures: dict[str, Any]) -> list[str]:
    for state in ("skipped", "failed"):
        if state in figures:
            return [f"| {part} | {state}: {figures[state]} | | | |"]
    return [f"| {part} | {side} | {' | '.join(cells)} |" for side, cells in _timed_sides(figures)]


def _timed_sides(figures: dict[str, Any], prefix: str = "") -> list[tuple[str, tuple[str, str, str]]]:
    """(name, cells) of everything in nested figures: median, quartiles, all else as text."""
    if "median_us" in figures:
        quartiles = f"{figures['lower_quartile_us']:.1f} .. {figures['upper_quartile_us']:.1f}"
        return [(prefix, (f"{figures['median_us']:.1f}", quartiles, _rest(figures)))]
    rows = []
    for name, value in figures.items():
        path = f"{prefix}, {name}" if prefix else name
        if isinstance(value, dict):
            rows += _timed_sides(value, path)
        elif name != "seconds":
            rows.append((path, ("-", "-", str(value))))
    return rows


def _rest(figures: dict[str, Any]) -> str:
    shown = {key: value for key, value in figures.items() if not key.endswith(("quartile_us", "median_us"))}
    return "; ".join(f"{key} {_plain(value)}" for key, value in shown.items() if key != "seconds")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    return str(value)
