"""Records of switches -> accept length by tokens since the change, the steady level, and how soon it is back."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bench.domain_change.switches import EDGES
from nanospec.coverage.figures import ratio_interval
from nanospec.coverage.pareto_plot import COLOURS, DOTS_PER_INCH, MARKERS, WIDTH_INCHES, save_figure

STEADY_FROM = 128  # tokens after the change: the level of a text that has long been in the new domain
RECOVERED = 0.97
PANEL_INCHES = 3.2


def summarize(records: Sequence[dict[str, Any]], policies: Sequence[str]) -> dict[str, Any]:
    """Per policy, the baseline first: bins, steady level, tokens until it is recovered. Records as in `__main__`."""
    return {policy: _policy(records, index) for index, policy in enumerate(policies)}


def recovered_after(levels: dict[int, float], steady: float) -> int:
    """Tokens after the change from which on every bin reaches 97 % of the steady level, at most `STEADY_FROM`.

    levels: by the first token of each bin. Example: levels 0: 2, 8: 3.9, 16: 4.1, steady 4, are recovered after 8.
    """
    recovered = STEADY_FROM
    for first in sorted((first for first in levels if 0 <= first < STEADY_FROM), reverse=True):
        if levels[first] < RECOVERED * steady:
            break
        recovered = first
    return recovered


def _policy(records: Sequence[dict[str, Any]], index: int) -> dict[str, Any]:
    bins = {first: _bin([record["bins"][str(first)] for record in records], index) for first in EDGES[:-1]}
    late = [record["bins"][str(first)] for record in records for first in EDGES[:-1] if first >= STEADY_FROM]
    steady = _bin(late, index)
    return {
        "bins": [{"from_token": first, "to_token": end, **bins[first]} for first, end in pairwise(EDGES)],
        "steady": steady,
        "recovered_after": {
            key: recovered_after({first: figures[key] for first, figures in bins.items()}, steady[key])
            for key in ("accept_length", "vs_full")
        },
    }


def _bin(measured: Sequence[Sequence[dict[str, Any]]], index: int) -> dict[str, Any]:
    """measured: of every context the measurements of all policies."""
    own = np.array([policies[index]["accept"] for policies in measured], dtype=np.float64)
    baseline = np.array([policies[0]["accept"] for policies in measured], dtype=np.float64)
    flags = [flag for policies in measured for flag in policies[index]["covered"]]
    return {
        "accept_length": float(own.mean()),
        "vs_full": float(own.sum() / baseline.sum()),
        "vs_full_95": list(ratio_interval(own, baseline, np.arange(len(own)))),
        "coverage": statistics.fmean(flags),
        "rows": statistics.fmean(policies[index]["rows"] for policies in measured),
    }


def draw_changes(domains: dict[str, dict[str, Any]], path: Path) -> None:
    """One panel per change: every policy's accept length in percent of its own steady level, over the tokens since."""
    from matplotlib.figure import Figure

    size = (WIDTH_INCHES, PANEL_INCHES * len(domains))
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
    panels = figure.subplots(len(domains), 1, squeeze=False)[:, 0]
    for axes, (name, policies) in zip(panels, domains.items(), strict=True):
        for place, (policy, summary) in enumerate(policies.items()):
            axes.plot(
                [(part["from_token"] + part["to_token"]) / 2 for part in summary["bins"]],
                [100 * part["accept_length"] / summary["steady"]["accept_length"] for part in summary["bins"]],
                label=policy,
                color=COLOURS[place % len(COLOURS)],
                marker=MARKERS[place % len(MARKERS)],
                markersize=4,
                linewidth=1.4,
            )
        axes.axvline(0, color="grey", linewidth=0.8)
        axes.axhline(100 * RECOVERED, color="grey", linewidth=0.8, linestyle="--")
        axes.set_title(name, fontsize=10)
        axes.set_ylabel("accept length, % of steady")
        axes.grid(alpha=0.25)
    panels[-1].set_xlabel("tokens since the change")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=9, frameon=False)
    save_figure(figure, path)
