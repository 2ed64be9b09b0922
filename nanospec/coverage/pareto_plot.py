"""The Pareto picture: accept length relative to the full vocabulary's, against the rows that the drafter scores."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanospec.all_or_nothing import new_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".svg", ".png")
WIDTH_INCHES, HEIGHT_INCHES, DOTS_PER_INCH = 8.0, 4.6, 100  # 800 pixels wide
# Okabe and Ito's colours, told apart by any kind of colour vision; the markers tell the same once more.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933", "#882255")
MARKERS = "osD^vP*Xh<"  # one more than colours, so that ten families do not repeat a pair


def check_plot_path(path: Path) -> None:
    """ValueError for a file that is neither .svg nor .png, and where matplotlib is missing."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"plot must be a file named {' or '.join(FORMATS)}, got {path.name}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("plot needs matplotlib, which is not installed: pip install matplotlib")


def family_of(row: dict[str, Any]) -> str:
    """Rows of one family make a line: the kind of the vocabulary, its prior, and a draft temperature of its own. A list
    from a file is no longer or shorter version of another."""
    vocab, plus, prior = row["spec"].partition("+")
    kind, _, detail = vocab.partition(":")
    family = (kind if kind != "static" or detail.isdecimal() else "static from a file") + plus + prior
    own_temperature = row["asked_temperature"]
    if row["vocab"] == "full" or own_temperature is None:
        return family
    return f"{family} at {own_temperature:g}"


def draw_pareto(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the picture of finished rows, which takes the place of the file only when it is complete. Raises as
    `check_plot_path`."""
    check_plot_path(path)
    figure = new_figure()
    axes = figure.add_subplot()
    families: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["mean_active_vocab"]):
        families.setdefault(family_of(row), []).append(row)
    for place, (family, members) in enumerate(sorted(families.items())):
        shares = [100 * member["accept_vs_full"] for member in members]
        bounds = [member["accept_vs_full_95"] for member in members]
        errors = (
            [share - 100 * low for share, (low, _) in zip(shares, bounds, strict=True)],
            [100 * high - share for share, (_, high) in zip(shares, bounds, strict=True)],
        )
        axes.errorbar(
            [member["mean_active_vocab"] for member in members],
            shares,
            yerr=errors,
            label=family,
            color=COLOURS[place % len(COLOURS)],
            marker=MARKERS[place % len(MARKERS)],
            markersize=6,
            linewidth=1.6,
            elinewidth=0.8,
            capsize=2,
        )
    axes.axhline(100, color="grey", linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda rows, _: f"{rows:,.0f}")
    axes.set_xlabel("rows that the drafter scores, mean")
    axes.set_ylabel("accept length, % of full's (95 % interval)")
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper", fontsize=9, frameon=False)
    save_figure(figure, path)


def new_figure() -> Figure:
    """An empty figure, 800 pixels wide."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), dpi=DOTS_PER_INCH, layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """As SVG or PNG, by the file's name, whole or not at all; the same figure gives the same bytes."""
    import matplotlib

    suffix = path.suffix.lower().removeprefix(".")
    with new_file(path) as partial, matplotlib.rc_context({"svg.hashsalt": "nanospec"}):
        figure.savefig(partial, format=suffix, metadata={"Date": None} if suffix == "svg" else None)
