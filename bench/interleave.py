"""Times several ways to one result in rotation, so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

NUM_ROUNDS = 15
SAMPLE_SECONDS = 4e-3  # one sample repeats a side until it takes about this long
HEADER = f"{'':<34}{'median us':>12}{'quartiles':>20}{'ratio':>9}{'quartiles':>18}"


def interleave(
    sides: Mapping[str, Callable[[], object]], device: torch.device, num_rounds: int = NUM_ROUNDS
) -> dict[str, list[float]]:
    """Seconds per call of every side, one sample per round; the order of the sides rotates from round to round.

    The first sample of a side warms it up and sets how often it is repeated; it is not kept.
    """
    names = list(sides)
    repeats = {}
    for name in names:
        _sample(sides[name], 1, device)
        repeats[name] = max(1, round(SAMPLE_SECONDS / max(_sample(sides[name], 1, device), 1e-7)))
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(num_rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(_sample(sides[name], repeats[name], device))
    return seconds


def format_rows(title: str, seconds: Mapping[str, list[float]]) -> list[str]:
    """Lines of a table: every side in microseconds, and as the ratio to the first side of the same round."""
    baseline = next(iter(seconds.values()))
    lines = [title]
    for name, values in seconds.items():
        low, median, high = (1e6 * quartile for quartile in statistics.quantiles(values, n=4))
        ratios = [value / base for value, base in zip(values, baseline, strict=True)]
        ratio_low, ratio, ratio_high = statistics.quantiles(ratios, n=4)
        spread, ratio_spread = f"{low:.1f} .. {high:.1f}", f"{ratio_low:.3f} .. {ratio_high:.3f}"
        lines.append(f"  {name:<32}{median:>12.1f}{spread:>20}{ratio:>9.3f}{ratio_spread:>18}")
    return lines


def _sample(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    _synchronize(device)
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    _synchronize(device)
    return (time.perf_counter() - began) / repeats


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
