"""Budgeted, resumable runs: elapsed time over restarts, a line of JSON every few seconds, a checkpoint now and then."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

LOG_EVERY_S = 15
CHECKPOINT_EVERY_S = 300


def learning_rate_factor(progress: float) -> float:
    """Warm-up over the first percent, constant, then linear to zero over the last half."""
    return min(1.0, progress / 0.01 + 0.01, (1.0 - progress) / 0.5)


class TimedRun:
    """Calls `step(progress) -> (loss, tokens)` until `minutes` of training time are spent, counted over restarts.

    progress: the share of the time that is spent, or of the steps if that is more and there is a limit of them. A run
    that ends by its steps has the same learning rates on every machine.
    state() and load(state) give and take what a checkpoint must hold. Files: out/log.jsonl, out/checkpoint.pt.
    """

    def __init__(self, out: Path, minutes: float, state: Callable[[], dict], load: Callable[[dict], None]) -> None:
        self.out, self.budget, self.state = out, minutes * 60, state
        self.elapsed, self.num_steps, self.num_tokens = 0.0, 0, 0
        out.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            saved = torch.load(self.checkpoint, weights_only=True)
            load(saved)
            self.elapsed, self.num_steps, self.num_tokens = saved["progress"]

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint.pt"

    def progress(self, max_steps: int | None) -> float:
        """In [0, 1); only asked while there is something left to do."""
        spent = self.elapsed / self.budget
        return spent if max_steps is None else max(spent, self.num_steps / max_steps)

    def run(self, step: Callable[[float], tuple[float, int]], max_steps: int | None = None) -> None:
        smooth, last_save, last_log, since = None, time.monotonic(), time.monotonic(), 0
        with (self.out / "log.jsonl").open("a") as log:
            while self.elapsed < self.budget and (max_steps is None or self.num_steps < max_steps):
                began = time.monotonic()
                loss, tokens = step(self.progress(max_steps))
                self.elapsed += time.monotonic() - began
                self.num_steps, self.num_tokens, since = self.num_steps + 1, self.num_tokens + tokens, since + tokens
                smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
                if time.monotonic() - last_log > LOG_EVERY_S:
                    rate = since / (time.monotonic() - last_log)
                    log.write(json.dumps({
                        "step": self.num_steps, "tokens": self.num_tokens, "seconds": round(self.elapsed),
                        "loss": round(smooth, 4), "tokens_per_second": round(rate),
                    }) + "\n")  # fmt: skip
                    log.flush()
                    last_log, since = time.monotonic(), 0
                if time.monotonic() - last_save > CHECKPOINT_EVERY_S:
                    self.save()
                    last_save = time.monotonic()
        self.save()

    def save(self) -> None:
        partial = self.checkpoint.with_suffix(".partial")
        torch.save({**self.state(), "progress": (self.elapsed, self.num_steps, self.num_tokens)}, partial)
        partial.rename(self.checkpoint)
