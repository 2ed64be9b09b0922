"""Parent positions in, attention structure out: who is an ancestor of whom, and how deep each node lies."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_KERNEL_NODES = 128  # T x T values that one program of a kernel keeps in registers


def has_tree_kernel(positions: Tensor) -> bool:
    """Whether one kernel handles trees such as `positions` [B, T].

    PyTorch takes other devices, larger trees, and what is traced: a compiler fuses it with its neighbours.
    """
    return positions.is_cuda and positions.shape[1] <= MAX_KERNEL_NODES and not torch.compiler.is_compiling()


def tree_layout(parent_pos: Tensor, max_depth: int) -> tuple[Tensor, Tensor]:
    """(`ancestor_mask` bool [B, T, T], `node_depth` int64 [B, T]) of parent_pos int64 [B, T]; one launch on CUDA."""
    if has_tree_kernel(parent_pos):
        from nanospec.ops.tree_layout_triton import tree_layout_triton

        return tree_layout_triton(parent_pos, max_depth)
    mask = ancestor_mask(parent_pos, max_depth)
    return mask, node_depth(mask)


def ancestor_mask(parent_pos: Tensor, max_depth: int) -> Tensor:
    """bool [B, T, T]: entry [i, j] is set iff j is i itself or an ancestor of i.

    parent_pos int64 [B, T]; the root (position 0) is its own parent; no node lies deeper than `max_depth`.
    Example: parents [0, 0, 0, 1] give rows 1000, 1100, 1010, 1101.
    """
    num_nodes = parent_pos.shape[1]
    mask = torch.eye(num_nodes, dtype=torch.bool, device=parent_pos.device).expand(parent_pos.shape[0], -1, -1)
    itself, index = mask, parent_pos[:, :, None].expand(-1, -1, num_nodes)
    for _ in range(max_depth):
        mask = itself | mask.gather(1, index)
    return mask


def node_depth(ancestors: Tensor) -> Tensor:
    """int64 [B, T]: number of proper ancestors of every node, 0 at the root."""
    return ancestors.sum(-1) - 1


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `visible` (bool), the most negative finite number of `dtype` elsewhere: the form all backends accept."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)
