"""Attention masks as the layers of a model take them: the whole context, or a window behind every token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nanospec.tree_layout import additive_mask

FULL, SLIDING = "full_attention", "sliding_attention"


class LayerMasks(NamedTuple):
    """The masks of one model.

    kinds    the kinds of its layers, FULL or SLIDING, each once: the order in which masks are handed on
    window   how many tokens a sliding layer sees, the token itself included; None where no layer slides
    by_kind  the model takes a mapping from kinds to masks; otherwise one mask for all layers
    """

    kinds: tuple[str, ...] = (FULL,)
    window: int | None = None
    by_kind: bool = False

    def build(
        self,
        visible: Tensor,
        length: Tensor | int,
        depth: Tensor,
        dtype: torch.dtype,
        row_depth: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """One additive mask [B, 1, n, end] for each kind; arguments as in `within_window`."""
        masks = []
        for kind in self.kinds:
            seen = visible
            if kind == SLIDING:
                assert self.window is not None, "a sliding layer has a window"
                seen = within_window(visible, length, depth, self.window, row_depth)
            masks.append(additive_mask(seen, dtype)[:, None])
        return tuple(masks)

    def as_argument(self, masks: Sequence[Tensor]) -> Tensor | dict[str, Tensor]:
        """`attention_mask` of the model's forward."""
        return dict(zip(self.kinds, masks, strict=True)) if self.by_kind else masks[0]


def within_window(
    visible: Tensor, length: Tensor | int, depth: Tensor, window: int, row_depth: Tensor | None = None
) -> Tensor:
    """What is visible and less than `window` positions back, bool [B, n, end].

    visible    bool [B, n, end]: what each of the n tokens behind `length` certain ones may see of the first `end` rows
    length     int, or int64 [1] or [B] on the device: row i < length holds the token at position i
    depth      int64 [B, n]: token i lies at position length + depth i, whatever its row
    row_depth  int64 [B, m], the same of the tokens in the rows behind the certain ones; None: these are the n tokens

    Example: length 2 and a tree of depths [0, 1, 1] lie at positions 0 1 2 3 3; with window 2 the last node sees rows
    2 and 4 of its visible rows 0, 1, 2, 4.
    """
    rows = torch.arange(visible.shape[2], device=visible.device)
    length = length[:, None] if isinstance(length, Tensor) else length
    behind = (rows - length).expand(depth.shape[0], -1)
    row_depth = depth if row_depth is None else row_depth
    of_nodes = length + row_depth.gather(1, behind.clamp(0, row_depth.shape[1] - 1))
    key_positions = torch.where(behind < 0, rows, of_nodes)  # [B, end]
    return visible & ((length + depth)[:, :, None] - key_positions[:, None] < window)
