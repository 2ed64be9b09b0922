"""Section (a): bytes per second of a large copy, what every other figure's bandwidth is a share of."""

from __future__ import annotations

import torch

from bench.gpu.run_context import BenchRun, Figures, Part


def copy_parts(_: BenchRun) -> list[Part]:
    return [Part("device", 5, measure_copy)]


def measure_copy(run: BenchRun) -> Figures:
    """Reads and writes count: a copy of n bytes moves 2 n."""
    source = torch.zeros(run.sizes.copy_bytes, dtype=torch.uint8, device=run.device)
    goal = torch.empty_like(source)
    times = run.time_replays({"copy": lambda: goal.copy_(source)})["copy"]
    moved = 2 * run.sizes.copy_bytes
    return {**times.as_json(), "bytes": moved, "bytes_per_s": round(moved / times.median)}
