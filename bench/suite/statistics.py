"""Results of a row on the same prompts as plain decoding's -> medians and ratios with 95 % intervals.

The intervals are percentiles of a bootstrap over prompts (Efron 1979): a resample takes whole prompts, with the row's
figures and those that it is compared with, so that ratios stay paired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bench.suite.decoded import STAGES, Decoded
from nanospec.coverage.figures import INTERVAL, NUM_RESAMPLES

Statistic = Callable[[np.ndarray], np.ndarray]  # float64 [.., n, m], n prompts with m numbers each -> [..]


class Estimate(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap(columns: Sequence[Sequence[float]], statistic: Statistic, seed: int = 0) -> Estimate | None:
    """The statistic of m columns over n prompts. Prompts without one of the numbers (nan) are left out; None without
    any prompt left, or without a value."""
    values = np.array(columns, dtype=np.float64).T
    values = values[~np.isnan(values).any(1)]
    if not len(values):
        return None
    drawn = np.random.default_rng(seed).integers(len(values), size=(NUM_RESAMPLES, len(values)))
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample may lack what it is divided by
        value, resampled = float(statistic(values)), statistic(values[drawn])
    if not np.isfinite(value):
        return None
    low, high = np.percentile(resampled[np.isfinite(resampled)], INTERVAL)
    return Estimate(value, float(low), float(high))


def median(values: np.ndarray) -> np.ndarray:
    """Of the first column."""
    return np.median(values[..., 0], -1)


def ratio_of_sums(values: np.ndarray) -> np.ndarray:
    """The first column's sum over the second's."""
    sums = values.sum(-2)
    return sums[..., 0] / sums[..., 1]


def ratio_of_ratios(values: np.ndarray) -> np.ndarray:
    """Columns a, b, c, d: (sum a / sum b) over (sum c / sum d)."""
    sums = values.sum(-2)
    return sums[..., 0] / sums[..., 1] / (sums[..., 2] / sums[..., 3])


def summarize(own: Sequence[Decoded], plain: Sequence[Decoded], full: Sequence[Decoded] | None) -> dict[str, Any]:
    """Figures of a row over some prompts; `plain` and `full` (the same drafter's whole vocabulary) over the same ones.

    An estimate is {value, low, high}; None is a figure that the row does not have. Medians are over prompts, ratios in
    them are taken prompt by prompt.
    """
    speeds = [[result.tokens_per_second for result in results] for results in (own, plain)]
    end_to_end = [[result.end_to_end_tokens_per_second for result in results] for results in (own, plain)]
    ttft = [[result.ttft for result in results] for results in (own, plain)]
    steps, step_tokens = [result.steps for result in own], [result.step_tokens for result in own]
    estimates = {
        "tokens_per_second": bootstrap(speeds[:1], median),
        "speedup": bootstrap([_ratios(*speeds)], median),
        "end_to_end_tokens_per_second": bootstrap(end_to_end[:1], median),
        "end_to_end_speedup": bootstrap([_ratios(*end_to_end)], median),
        "accept_length": bootstrap([step_tokens, steps], ratio_of_sums),
        "relative_accept_length": None if full is None else _relative_accept_length(own, full),
        "ttft_ms": bootstrap([[1000 * seconds for seconds in ttft[0]]], median),
        "ttft_ratio": bootstrap([_ratios(*ttft)], median),
    }
    return {
        "prompts": len(own),
        **{name: estimate and estimate._asdict() for name, estimate in estimates.items()},
        "active_rows": _active_rows(own),
        "ms_per_step": _quotient(1000 * sum(result.decode_seconds for result in own), sum(steps)),
        "stage_ms_per_step": _stages(own),
    }


def _relative_accept_length(own: Sequence[Decoded], full: Sequence[Decoded]) -> Estimate | None:
    columns = [[float(number) for number in column] for results in (own, full) for column in _steps_of(results)]
    return bootstrap(columns, ratio_of_ratios)


def _steps_of(results: Sequence[Decoded]) -> tuple[list[int], list[int]]:
    return [result.step_tokens for result in results], [result.steps for result in results]


def _ratios(own: Sequence[float], other: Sequence[float]) -> list[float]:
    return [value / base for value, base in zip(own, other, strict=True)]


def _active_rows(own: Sequence[Decoded]) -> float | None:
    counted = [result.active_rows for result in own if result.active_rows is not None]
    return _quotient(sum(counted), sum(result.steps for result in own)) if counted else None


def _stages(own: Sequence[Decoded]) -> dict[str, float] | None:
    """Milliseconds per step by stage, over all prompts."""
    seen = [result for result in own if result.stages is not None]
    steps = sum(result.steps for result in seen)
    if not steps:
        return None
    return {stage: 1000 * sum((result.stages or {})[stage] for result in seen) / steps for stage in STAGES}


def _quotient(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None
