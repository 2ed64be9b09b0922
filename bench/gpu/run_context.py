"""What every section of the benchmark is given, and what it hands back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from bench.gpu.sizes import BenchSizes
from bench.gpu.timing import Call, Quartiles, time_replays

Figures = dict[str, Any]
DEVICES = ("cuda", "cpu")


@dataclass(frozen=True)
class BenchRun:
    """sizes, and where and in which dtype to measure; `copy_bytes_per_s` is None where the copy was not measured."""

    sizes: BenchSizes
    device: torch.device
    dtype: torch.dtype
    copy_bytes_per_s: float | None = None

    def time_replays(self, sides: Mapping[str, Call]) -> dict[str, Quartiles]:
        return time_replays(sides, self.device, self.sizes.num_rounds, self.sizes.sample_s)

    def with_bandwidth(self, times: Quartiles, num_bytes: int) -> Figures:
        """The quartiles of a call that must move `num_bytes`, and its share of the bandwidth of a copy."""
        rate = num_bytes / times.median
        share = None if self.copy_bytes_per_s is None else round(rate / self.copy_bytes_per_s, 4)
        return {**times.as_json(), "bytes": num_bytes, "bytes_per_s": round(rate), "share_of_copy": share}


class Part(NamedTuple):
    """One piece of a section that is measured or skipped as a whole; `needed_s` is what it takes about on a GPU."""

    name: str
    needed_s: float
    measure: Callable[[BenchRun], Figures]


def read_device(name: str | None) -> torch.device:
    """The device of that name, by default CUDA where there is one.

    Raises ValueError for a name that is no choice, or CUDA where torch finds none.
    """
    kind = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {kind!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError("device must be cpu where torch finds no CUDA device, got 'cuda'")
    return torch.device(kind)


def with_ratios(timings: Mapping[str, Quartiles], baseline: str) -> Figures:
    """Every side's quartiles, and its median as a ratio to the baseline's."""
    base = timings[baseline].median
    return {
        name: {**times.as_json(), f"ratio_to_{baseline.replace(' ', '_')}": round(times.median / base, 4)}
        for name, times in timings.items()
    }
