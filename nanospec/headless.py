"""The floor of drafting: the same tree grown with the head deleted, timed beside the real one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from nanospec.drafters.drafter import Drafter
from nanospec.records import DraftVocab
from nanospec.stats import GenerationStats
from nanospec.tree_drafter import TreeDrafter
from nanospec.tree_shape import TreeShape


class _HeadlessDrafter:
    """A drafter whose logits cost nothing: everything but the head runs."""

    name = "headless"

    def __init__(self, drafter: Drafter, width: int, device: torch.device) -> None:
        self.reset, self.rewind, self.extend, self.advance = (
            drafter.reset, drafter.rewind, drafter.extend, drafter.advance,
        )  # fmt: skip
        self.dtype = drafter.dtype
        self._logits = torch.arange(width, dtype=torch.float32, device=device).expand(1, width, -1)

    def logits(self, states: Tensor, vocab: DraftVocab) -> Tensor:
        return self._logits[:, : states.shape[1]]


class HeadlessProbe:
    """Grows a headless tree at the state of every step and adds its time to `stats.headless_draft_seconds`.

    A step's draft time also holds the drafter's pass over the accepted tokens: `timed` counts that in.
    """

    def __init__(self, drafter: Drafter, shape: TreeShape, stats: GenerationStats, device: torch.device) -> None:
        self.stats, self.device = stats, device
        width = shape.branching
        self.tree_drafter = TreeDrafter(_HeadlessDrafter(drafter, width, device), shape)
        ids = torch.arange(width, device=device)[None]
        self.vocab = DraftVocab(ids, torch.full((1,), width, dtype=torch.int32, device=device), None)

    def draft(self, root_id: Tensor, state: Tensor) -> None:
        with self.timed():
            self.tree_drafter.draft(root_id, state, self.vocab)

    @contextmanager
    def timed(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.stats.headless_draft_seconds += time.perf_counter() - began
