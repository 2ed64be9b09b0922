"""Ancestors and depths of a draft tree as one kernel: a program per sequence, all nodes walking up at once.

ancestors(i) = {i, parent(i), parent(parent(i)), ..}, max_depth steps; the root is its own parent
depth(i)     = |ancestors(i)| - 1
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MIN_BLOCK = 16
NODES_PER_WARP = 8  # T x T values then take few registers, and few of the predicate registers of gfx942


@triton.jit(do_not_specialize=["num_nodes", "max_depth"])
def tree_layout_kernel(
    parent_pos,  # int64 [B, T]
    ancestor_mask,  # bool [B, T, T]
    depth,  # int64 [B, T]
    num_nodes,
    max_depth,
    BLOCK_T: tl.constexpr,
):
    sequence = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, BLOCK_T)
    column = tl.arange(0, BLOCK_T)
    is_node = row < num_nodes
    parent_pos += sequence * num_nodes

    node = row
    mask = (row[:, None] == column[None, :]).to(tl.int8)  # [BLOCK_T, BLOCK_T]
    for _ in range(max_depth):
        node = tl.load(parent_pos + node, mask=is_node, other=0).to(tl.int32)
        mask = mask | (node[:, None] == column[None, :]).to(tl.int8)

    out = ancestor_mask + sequence * num_nodes * num_nodes + row[:, None] * num_nodes + column[None, :]
    tl.store(out, mask.to(tl.int1), mask=is_node[:, None] & (column < num_nodes)[None, :])
    num_ancestors = tl.sum(mask.to(tl.int32), 1) - 1
    tl.store(depth + sequence * num_nodes + row, num_ancestors.to(tl.int64), mask=is_node)


def tree_layout_triton(parent_pos: Tensor, max_depth: int) -> tuple[Tensor, Tensor]:
    """As `tree_layout`: (ancestor_mask bool [B, T, T], depth int64 [B, T])."""
    batch_size, num_nodes = parent_pos.shape
    mask = parent_pos.new_empty(batch_size, num_nodes, num_nodes, dtype=torch.bool)
    depth = parent_pos.new_empty(batch_size, num_nodes)
    block_t, num_warps = launch_constants(num_nodes)
    with torch.cuda.device_of(parent_pos):  # Triton launches on the current device
        tree_layout_kernel[(batch_size,)](
            parent_pos.contiguous(),
            mask,
            depth,
            num_nodes,
            max_depth,
            BLOCK_T=block_t,
            num_warps=num_warps,
        )
    return mask, depth


def launch_constants(num_nodes: int) -> tuple[int, int]:
    """BLOCK_T for T nodes, and how many warps the kernel takes."""
    block_t = max(triton.next_power_of_2(num_nodes), MIN_BLOCK)
    return block_t, max(block_t // NODES_PER_WARP, 4)
