"""Memory over a run: samples between rounds, when nothing is in flight, and lines through them."""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

STATM = Path("/proc/self/statm")
FEWEST_SAMPLES = 6  # a line through fewer says nothing
NUM_ERRORS = 3.0  # standard errors that a slope must lie above its bound


class MemorySample(NamedTuple):
    """Bytes after so many requests.

    python, python_peak  what Python allocated, now and at most since the last sample (tracemalloc)
    tensors              storage of all tensors that are alive; exact, and nothing that an allocator keeps
    resident             the process, as the system sees it; None where there is no /proc
    """

    num_requests: int
    python: int
    python_peak: int
    tensors: int
    resident: int | None


# Bytes per request that are no growth. An engine that stayed would cost its caches, a request that stayed its ids and
# settings: about 2 kB. Beside these an allocator's scatter is large, hence the bound of `resident`.
BOUNDS = {"python": 500.0, "tensors": 500.0, "resident": 20_000.0}


class Slope(NamedTuple):
    """Growth of one figure by least squares; error: its standard error."""

    bytes_per_request: float
    error: float
    bound: float
    num_samples: int

    @property
    def grows(self) -> bool:
        return self.bytes_per_request - NUM_ERRORS * self.error > self.bound

    @property
    def is_judged(self) -> bool:
        """Whether there are samples enough."""
        return self.num_samples >= FEWEST_SAMPLES

    @property
    def verdict(self) -> str:
        """Either "flat" or "grows"; of too few samples "not judged"."""
        if not self.is_judged:
            return "not judged"
        return "grows" if self.grows else "flat"


def take_sample(num_requests: int) -> MemorySample:
    """Needs tracemalloc running. What only awaits collection does not count."""
    gc.collect()
    python, peak = tracemalloc.get_traced_memory()
    sample = MemorySample(num_requests, python, peak, _tensor_bytes(), _resident_bytes())
    tracemalloc.reset_peak()
    return sample


def fit_slopes(samples: Sequence[MemorySample]) -> dict[str, Slope]:
    """Of every figure that has a bound, over the last two thirds of the requests; the first third warms up."""
    last = samples[-1].num_requests if samples else 0
    steady = [sample for sample in samples if sample.num_requests > last / 3]
    slopes = {}
    for name, bound in BOUNDS.items():
        points = [(sample.num_requests, value) for sample in steady if (value := getattr(sample, name)) is not None]
        slopes[name] = fit_slope(points, bound)
    return slopes


def fit_slope(points: Sequence[tuple[int, int]], bound: float) -> Slope:
    """Example: (0, 5), (1, 7), (2, 9) rise by 2 with an error of 0."""
    if len(points) < 3:
        return Slope(0.0, 0.0, bound, len(points))
    x, y = np.array(points, dtype=np.float64).T
    x, y = x - x.mean(), y - y.mean()
    spread = float(x @ x)
    slope = float(x @ y) / spread
    residual = y - slope * x
    return Slope(slope, float(np.sqrt(residual @ residual / (len(points) - 2) / spread)), bound, len(points))


def _tensor_bytes() -> int:
    sizes = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.layout is torch.strided:
            storage = thing.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def _resident_bytes() -> int | None:
    if not STATM.exists():
        return None
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
