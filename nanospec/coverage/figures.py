"""Records of a measurement -> one row per policy: means, ratios to the baseline on the same contexts, intervals."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

POSITION_EDGES = (0, 32, 64, 128, 256, 512)  # tokens of the response before the cut: first of each bin
NUM_RESAMPLES, INTERVAL = 1000, (2.5, 97.5)


def build_rows(records: Sequence[dict[str, Any]], policies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per policy, the baseline first as in the records. policies: what each row says of itself (`vocab`, ..).

    Raises ValueError where no document yielded a context.
    """
    contexts = [
        {"document": record["document"], "task": record["task"], **context}
        for record in records
        for context in record["contexts"] or ()
    ]
    if not contexts:
        raise ValueError(f"prompts must hold one that the target has room for, got none in {len(records)} records")
    return [{**policy, **_row(contexts, index)} for index, policy in enumerate(policies)]


def ratio_interval(own: np.ndarray, baseline: np.ndarray, groups: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % interval of sum(own) / sum(baseline), both float64 [n], by a bootstrap over groups int64 [n].

    Paired: a resample takes whole groups, here documents, with both sides; cuts of one document are not independent.
    """
    _, group = np.unique(groups, return_inverse=True)
    sums = np.stack([np.bincount(group, weights=side) for side in (own, baseline)], 1)
    draws = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), NUM_RESAMPLES)
    resampled = draws @ sums
    low, high = np.percentile(resampled[:, 0] / resampled[:, 1], INTERVAL)
    return float(low), float(high)


def _row(contexts: Sequence[dict[str, Any]], index: int) -> dict[str, Any]:
    by_task, upkeep = {context["task"] for context in contexts}, _upkeep(contexts, index)
    return {
        **_figures(contexts, index),
        "upkeep_share": upkeep and upkeep["share"],
        "upkeep": upkeep,
        "per_task": {
            task: _figures([context for context in contexts if context["task"] == task], index)
            for task in sorted(by_task)
        },
        "per_depth": _per_depth([context["policies"][index] for context in contexts]),
        "per_position": _per_position(contexts, index),
    }


def _figures(contexts: Sequence[dict[str, Any]], index: int) -> dict[str, Any]:
    own = [context["policies"][index] for context in contexts]
    accept = np.array([measurement["accept"] for measurement in own], dtype=np.float64)
    baseline = np.array([context["policies"][0]["accept"] for context in contexts], dtype=np.float64)
    documents = np.array([context["document"] for context in contexts])
    return {
        "contexts": len(contexts),
        "accept_vs_full": float(accept.sum() / baseline.sum()),
        "accept_vs_full_95": list(ratio_interval(accept, baseline, documents)),
        "accept_length": float(accept.mean()),
        "mean_active_vocab": statistics.fmean(measurement["rows"] for measurement in own),
        "coverage": _share(own, "covered"),
        "recall_top1": _share(own, "held_top1"),
        "recall_tree": _ratio(sum(m["held_nodes"] for m in own), sum(m["num_nodes"] for m in own)),
    }


def _share(measurements: Sequence[dict[str, Any]], key: str) -> float | None:
    flags = [flag for measurement in measurements for flag in measurement[key]]
    return _ratio(sum(flags), len(flags))


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None


def _per_depth(measurements: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """From depth 1: coverage and recall there, and the share of contexts whose accepted path reaches it."""
    return [
        {
            "depth": depth + 1,
            "coverage": statistics.fmean(m["covered"][depth] for m in measurements),
            "recall_top1": _share([{"held": m["held_top1"][depth : depth + 1]} for m in measurements], "held"),
            "accepted": statistics.fmean(m["accept"] > depth + 1 for m in measurements),
        }
        for depth in range(len(measurements[0]["covered"]))
    ]


def _per_position(contexts: Sequence[dict[str, Any]], index: int) -> list[dict[str, Any]]:
    """By tokens of the response before the cut."""
    places = np.searchsorted(POSITION_EDGES, [context["position"] for context in contexts], side="right") - 1
    bins = []
    for place, first in enumerate(POSITION_EDGES):
        inside = [context for context, own in zip(contexts, places, strict=True) if own == place]
        if inside:
            bins.append({"from_token": first, **_figures(inside, index)})
    return bins


def _upkeep(contexts: Sequence[dict[str, Any]], index: int) -> dict[str, Any] | None:
    """Medians over the timed contexts, in milliseconds, and the share of a step: they depend on the machine."""
    timed = [context for context in contexts if context["verify_ms"] is not None]
    if not timed:
        return None
    verify = statistics.median(context["verify_ms"] for context in timed)
    draft, learn = (
        statistics.median(context["policies"][index][key] for context in timed) for key in ("draft_ms", "learn_ms")
    )
    return {
        "share": learn / (draft + verify + learn),
        "learn_ms": learn,
        "draft_ms": draft,
        "verify_ms": verify,
        "timed_contexts": len(timed),
        "machine_dependent": True,
    }
