"""Draft time against V, K and B, drawn from a finished report: `python -m bench.gpu.plots DIR`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.gpu.report import JSON_NAME

PLOTS = {
    "vocab_size": "vocabulary V",
    "draft_size": "draft vocabulary K",
    "batch_size": "batch B",
}
NO_MATPLOTLIB = "matplotlib is not installed"


def draw_plots(out: Path, sections: dict[str, Any]) -> dict[str, str]:
    """One PNG per swept size into `out`. Returns {plot: file name, or why it was not drawn}."""
    drawn = {}
    for name, label in PLOTS.items():
        figures = sections["scaling"].get(name, {})
        sizes = {size: sides for size, sides in figures.items() if size.isdecimal()}
        if not sizes:
            drawn[name] = f"skipped: {figures.get('skipped', 'no figures')}"
        elif importlib.util.find_spec("matplotlib") is None:
            drawn[name] = f"skipped: {NO_MATPLOTLIB}"
        else:
            drawn[name] = _draw(out / f"draft_time_by_{name}.png", label, sizes)
    return drawn


def _draw(path: Path, label: str, sizes: dict[str, Any]) -> str:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name in dict.fromkeys(name for sides in sizes.values() for name in sides):
        measured = {int(size): sides[name] for size, sides in sizes.items() if name in sides}
        if len(measured) == 1:  # a level that all sizes are compared with
            axes.axhline(next(iter(measured.values()))["median_us"], linestyle="--", color="grey")
            axes.text(0.02, next(iter(measured.values()))["median_us"], name, transform=axes.get_yaxis_transform())
            continue
        medians = [figures["median_us"] for figures in measured.values()]
        below = [figures["median_us"] - figures["lower_quartile_us"] for figures in measured.values()]
        above = [figures["upper_quartile_us"] - figures["median_us"] for figures in measured.values()]
        axes.errorbar(list(measured), medians, yerr=(below, above), marker="o", capsize=2, label=name)
    axes.set(xlabel=label, ylabel="draft, us (median, quartiles)", xscale="log", ylim=(0, None))
    swept = [int(size) for size, sides in sizes.items() if len(sides) > 1]
    axes.set_xticks(swept, [str(size) for size in swept])
    axes.minorticks_off()
    axes.legend()
    partial = path.with_name(f"{path.name}.partial")
    FigureCanvasAgg(figure).print_png(str(partial))
    partial.replace(path)
    return path.name


def main(out: Annotated[Path, typer.Argument(help=f"Directory that holds {JSON_NAME}.")]) -> None:
    """Draw the plots of a report, where the machine that measured had no matplotlib."""
    report = json.loads((out / JSON_NAME).read_text(encoding="utf-8"))
    for name, result in draw_plots(out, report["sections"]).items():
        typer.echo(f"{name}: {result}")


if __name__ == "__main__":
    typer.run(main)
