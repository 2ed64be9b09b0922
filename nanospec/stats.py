"""Where the time of a generation went and what it yielded."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from nanospec.tree_shape import TreeShape

STAGES = ("prefill", "draft", "verify", "vocabulary", "other", "step")


@dataclass
class GenerationStats:
    """Figures of one generation; seconds are wall time, the device synchronised at the end of every stage.

    seconds: prefill (prompt pass, its target top-k, the drafter's pass over the prompt), draft (drafter passes, head,
    tree), verify (target pass over the tree, its top-k, the acceptance), vocabulary (tracker update, row copies),
    other (readback, cache compaction, book-keeping); step (all of these at once, where a step is one CUDA graph).

    unsayable_ids: of the observed_ids that were offered to the draft vocabulary (repeated ones each time), those that a
    draft with a vocabulary of its own cannot say; both 0 for a draft that scores all ids.
    cached_tokens: of the prompt_tokens, those that a `PrefixCache` saved from being read again.
    failed_drafts: steps whose drafter gave no finite score to anything, so that they were plain decoding.
    lossless: False if drafted tokens were kept that the target need not have said.
    """

    vocab: str
    drafter: str | None
    device: str
    dtype: str
    tree: TreeShape | None = None
    new_tokens: int = 0
    target_passes: int = 0
    steps: int = 0
    step_tokens: int = 0
    active_rows: int = 0
    observed_ids: int = 0
    unsayable_ids: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    failed_drafts: int = 0
    headless_draft_seconds: float = 0.0
    lossless: bool = True
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @property
    def mean_accept_length(self) -> float:
        """Tokens per target pass of the decoding steps, bonus token included, before any cut at EOS or the limit."""
        return self.step_tokens / self.steps if self.steps else 0.0

    @property
    def mean_active_vocab(self) -> float:
        """Rows scored by the drafter, averaged over steps."""
        return self.active_rows / self.steps if self.steps else 0.0

    @property
    def decode_seconds(self) -> float:
        return sum(self.seconds.values()) - self.seconds["prefill"]

    @property
    def tokens_per_second(self) -> float:
        """New tokens after the first (which the prompt pass yields) per second of decoding."""
        return (self.new_tokens - 1) / self.decode_seconds if self.decode_seconds > 0 else 0.0


class StageClock:
    """Adds wall time to the stages of a `GenerationStats`; a CUDA device is synchronised at the end of every stage."""

    def __init__(self, stats: GenerationStats, device: torch.device) -> None:
        self.stats, self.device = stats, device

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.stats.seconds[name] += time.perf_counter() - began
