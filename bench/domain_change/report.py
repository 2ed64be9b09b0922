"""Records of switches -> accept length by tokens since the change, the steady level, and how soon it is back.

No text is equally easy everywhere, so what a policy has lost is told in two ways: its accept length as a share of its
steady one, and the same of its accept length over its twin's, which is the full vocabulary drafted alike, at the same
places. The second leaves out what text and drafter do.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bench.domain_change.switches import EDGES
from nanospec.coverage.figures import INTERVAL, NUM_RESAMPLES, ratio_interval
from nanospec.coverage.pareto_plot import COLOURS, DOTS_PER_INCH, MARKERS, WIDTH_INCHES, save_figure
from nanospec.coverage.policy import FULL
from nanospec.vocab_selector import PRIOR_SUFFIX

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEADY_FROM = 128  # tokens after the change: the level of a text that has long been in the new domain
RECOVERED = 0.97
PANEL_INCHES = 3.2
SHARES = {"of_steady": "accept length", "vs_twin_of_steady": "accept length over its twin's"}


class Drafted(NamedTuple):
    """A policy of the records: its name, the vocabulary as it was asked for, the drafter's temperature."""

    name: str
    vocab: str
    temperature: float


class _Bin(NamedTuple):
    """Accept lengths of a policy and of its twin at the places of some bins, float64 [switches, places]."""

    own: np.ndarray
    twin: np.ndarray


def summarize(records: Sequence[dict[str, Any]], policies: Sequence[Drafted]) -> dict[str, Any]:
    """Per policy, the baseline first: bins, steady level, tokens until it is recovered. Records as in `__main__`."""
    return {policy.name: _policy(records, policies, index) for index, policy in enumerate(policies)}


def find_twin(policies: Sequence[Drafted], index: int) -> int:
    """Which of `policies` drafts as that at `index`, but from all ids: with the same prior and the same temperature.

    0, the baseline, where none does. Example: of "full", "full+prior" and "hybrid:512+prior" the second for the third.
    """
    policy = policies[index]
    full = FULL + PRIOR_SUFFIX if policy.vocab.endswith(PRIOR_SUFFIX) else FULL
    wanted = (full, policy.temperature)
    return next((place for place, other in enumerate(policies) if other[1:] == wanted), 0)


def recovered_after(shares: dict[int, float]) -> int:
    """Tokens after the change from which on every bin reaches 97 % of the steady level, at most `STEADY_FROM`.

    shares: of the steady level, by the first token of each bin. Example: 0: 0.5, 8: 0.98, 16: 1.1 is recovered after 8.
    With the upper ends of intervals in place of the shares: the tokens after which no bin is surely short.
    """
    recovered = STEADY_FROM
    for first in sorted((first for first in shares if 0 <= first < STEADY_FROM), reverse=True):
        if shares[first] < RECOVERED:
            break
        recovered = first
    return recovered


def _policy(records: Sequence[dict[str, Any]], policies: Sequence[Drafted], index: int) -> dict[str, Any]:
    twin = find_twin(policies, index)
    firsts = EDGES[:-1]
    late = [first for first in firsts if first >= STEADY_FROM]
    steady = _accepted(records, index, twin, late)
    bins = {
        first: _figures(records, index, [first]) | _shares(_accepted(records, index, twin, [first]), steady)
        for first in firsts
    }
    return {
        "twin": policies[twin].name,
        "bins": [{"from_token": first, "to_token": end, **bins[first]} for first, end in pairwise(EDGES)],
        "steady": _figures(records, index, late) | {"vs_twin": float(steady.own.sum() / steady.twin.sum())},
        "recovered_after": {
            key: recovered_after({first: figures[key] for first, figures in bins.items()}) for key in SHARES
        },
        "surely_short_until": {
            key: recovered_after({first: figures[f"{key}_95"][1] for first, figures in bins.items()}) for key in SHARES
        },
    }


def _figures(records: Sequence[dict[str, Any]], index: int, firsts: Sequence[int]) -> dict[str, Any]:
    """Means over the places of these bins."""
    places = [record["bins"][str(first)] for record in records for first in firsts]
    own, baseline = (np.array([place[i]["accept"] for place in places], dtype=np.float64) for i in (index, 0))
    groups = np.arange(len(records)).repeat(len(firsts))
    return {
        "accept_length": float(own.mean()),
        "vs_full": float(own.sum() / baseline.sum()),
        "vs_full_95": list(ratio_interval(own, baseline, groups)),
        "coverage": statistics.fmean(flag for place in places for flag in place[index]["covered"]),
        "rows": statistics.fmean(place[index]["rows"] for place in places),
    }


def _accepted(records: Sequence[dict[str, Any]], index: int, twin: int, firsts: Sequence[int]) -> _Bin:
    sides = [
        [[record["bins"][str(first)][i]["accept"] for first in firsts] for record in records] for i in (index, twin)
    ]
    return _Bin(*np.array(sides, dtype=np.float64))


def _shares(here: _Bin, steady: _Bin) -> dict[str, Any]:
    """What of the steady level there is in a bin, with 95 % intervals: a bootstrap over switches."""
    num_switches = len(here.own)
    even = np.full(num_switches, 1 / num_switches)
    draws = np.random.default_rng(0).multinomial(num_switches, even, NUM_RESAMPLES)
    sides = [side.mean(1) for side in (here.own, here.twin, steady.own, steady.twin)]
    once, resampled = ([weights @ side for side in sides] for weights in (np.ones(num_switches), draws))
    shares = {}
    for key in SHARES:
        value, many = (
            own / late if key == "of_steady" else own / twin / (late / late_twin)
            for own, twin, late, late_twin in (once, resampled)
        )
        shares |= {key: float(value), f"{key}_95": np.percentile(many, INTERVAL).tolist()}
    return shares


def draw_changes(domains: dict[str, dict[str, Any]], path: Path) -> None:
    """A row of panels per change, over the tokens since: every policy in percent of its own steady level, with 95 %
    intervals, by accept length and by accept length over its twin's."""
    from matplotlib.figure import Figure

    size = (WIDTH_INCHES, PANEL_INCHES * len(domains))
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
    panels = figure.subplots(len(domains), len(SHARES), squeeze=False, sharey="row", sharex=True)
    for row, (name, policies) in zip(panels, domains.items(), strict=True):
        for axes, (key, label) in zip(row, SHARES.items(), strict=True):
            _draw_panel(axes, policies, key)
            axes.set_title(f"{name}\n{label}", fontsize=9)
        row[0].set_ylabel("% of steady")
    for axes in panels[-1]:
        axes.set_xlabel("tokens since the change")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", fontsize=8, frameon=False, ncols=3)
    save_figure(figure, path)


def _draw_panel(axes: Axes, policies: dict[str, Any], key: str) -> None:
    for place, (policy, summary) in enumerate(policies.items()):
        bins, colour = summary["bins"], COLOURS[place % len(COLOURS)]
        middle = [(part["from_token"] + part["to_token"]) / 2 for part in bins]
        low, high = (100 * np.array([part[f"{key}_95"][end] for part in bins]) for end in (0, 1))
        axes.fill_between(middle, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.plot(
            middle,
            [100 * part[key] for part in bins],
            label=policy,
            color=colour,
            marker=MARKERS[place % len(MARKERS)],
            markersize=4,
            linewidth=1.4,
        )
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.axhline(100 * RECOVERED, color="grey", linewidth=0.8, linestyle="--")
    axes.grid(alpha=0.25)
