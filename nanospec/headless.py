"""The floor of drafting: the same tree grown with the head deleted, timed beside the real one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from nanospec.compiled_drafter import CompiledTreeDrafter
from nanospec.drafters.drafter import Drafter
from nanospec.records import DraftVocab
from nanospec.stats import GenerationStats
from nanospec.tree_drafter import TreeGrower
from nanospec.tree_shape import TreeShape


class _HeadlessDrafter:
    """A drafter whose logits cost nothing: everything but the head runs."""

    name = "headless"

    def __init__(self, drafter: Drafter, width: int, device: torch.device) -> None:
        self.reset, self.extend, self.advance = drafter.reset, drafter.extend, drafter.advance
        self.dtype = drafter.dtype
        self._logits = torch.arange(width, dtype=torch.float32, device=device).expand(1, width, -1)

    def logits(self, states: Tensor, vocab: DraftVocab) -> Tensor:
        return self._logits[:, : states.shape[1]]


def headless_drafter(drafter: Drafter, shape: TreeShape, device: torch.device) -> Drafter:
    """The drafter without its head, for trees of `shape`."""
    return _HeadlessDrafter(drafter, shape.branching, device)


class HeadlessProbe:
    """Grows a headless tree at the state of every step and adds its time to `stats.headless_draft_seconds`.

    A step's draft time also holds the drafter's pass over the accepted tokens: `timed` counts that in.
    """

    def __init__(self, tree_drafter: TreeGrower, stats: GenerationStats, device: torch.device) -> None:
        self.stats, self.device, self.tree_drafter = stats, device, tree_drafter
        self._is_warm = not isinstance(tree_drafter, CompiledTreeDrafter)
        width = tree_drafter.shape.branching
        ids = torch.arange(width, device=device)[None]
        self.vocab = DraftVocab(ids, torch.full((1,), width, dtype=torch.int32, device=device), None)

    def draft(self, root_id: Tensor, state: Tensor) -> None:
        if not self._is_warm:  # the first call may compile
            self.tree_drafter.draft(root_id, state, self.vocab)
            self._is_warm = True
        with self.timed():
            self.tree_drafter.draft(root_id, state, self.vocab)

    @contextmanager
    def timed(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.stats.headless_draft_seconds += time.perf_counter() - began
