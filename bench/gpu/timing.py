"""Several ways to one result, timed in rotation: CUDA events around many graph replays, a clock on the CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

WARM_UP_CALLS = 3
MAX_REPEATS = 10_000
Call = Callable[[], object]


class Quartiles(NamedTuple):
    """Seconds per call over the samples of one side."""

    lower: float
    median: float
    upper: float

    @classmethod
    def of(cls, samples: list[float]) -> Quartiles:
        return cls(*statistics.quantiles(samples, n=4)) if len(samples) > 1 else cls(*samples * 3)

    def divided_by(self, num_calls: int) -> Quartiles:
        """Of one call, where a sample's unit was `num_calls` of them."""
        return Quartiles(*(seconds / num_calls for seconds in self))

    def as_json(self) -> dict[str, float]:
        names = ("lower_quartile_us", "median_us", "upper_quartile_us")
        return {name: round(value * 1e6, 3) for name, value in zip(names, self, strict=True)}


def captured(call: Call, device: torch.device) -> Call:
    """`call` as the replay of one CUDA graph; on a CPU the call itself.

    `call` must read and write the same tensors every time, and must not wait for the device.
    """
    if device.type != "cuda":
        return call
    side_stream = torch.cuda.Stream(device)
    side_stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side_stream):  # kernels are compiled and libraries set up before the capture
        for _ in range(WARM_UP_CALLS):
            call()
    torch.cuda.current_stream(device).wait_stream(side_stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()

    def replay() -> object:
        graph.replay()
        return kept

    return replay


def time_sides(
    sides: Mapping[str, Call], device: torch.device, num_rounds: int, sample_s: float, in_a_row: bool = False
) -> dict[str, Quartiles]:
    """Seconds per call of every side: one sample per round, the order of the sides rotating from round to round.

    A sample repeats its side until it takes about `sample_s`; how often is found in samples that are not kept.
    in_a_row: a call that is not counted comes before each sample, for what always follows another of its kind.
    """
    names = list(sides)
    repeats = {}
    for name in names:
        _sample(sides[name], 1, device)
        once = max(_sample(sides[name], 1, device), 1e-9)
        repeats[name] = min(max(1, round(sample_s / once)), MAX_REPEATS)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(num_rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            if in_a_row:
                sides[name]()
            samples[name].append(_sample(sides[name], repeats[name], device))
    return {name: Quartiles.of(values) for name, values in samples.items()}


def time_replays(
    sides: Mapping[str, Call], device: torch.device, num_rounds: int, sample_s: float
) -> dict[str, Quartiles]:
    """`time_sides` of every side's graph."""
    return time_sides({name: captured(call, device) for name, call in sides.items()}, device, num_rounds, sample_s)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _sample(call: Call, repeats: int, device: torch.device) -> float:
    """Seconds per call."""
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - began) / repeats
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / repeats
