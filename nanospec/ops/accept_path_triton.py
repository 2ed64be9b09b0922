"""The greedy path through a draft tree as one kernel: a program per sequence walks down from the root.

node(0)   = 0
node(d+1) = the child of node(d) that carries best(node(d)); siblings are distinct, so there is one at most
next_id   = best of the last node
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

NUM_WARPS = 1  # a few nodes a thread, and no barriers between the levels


@triton.jit(do_not_specialize=["num_nodes", "path_length"])
def accept_path_kernel(
    token_ids,  # int64 [B, T]
    parent_pos,  # int64 [B, T]
    best_id,  # int64 [B, T]
    accepted_pos,  # int64 [B, L]
    num_accepted,  # int64 [B]
    next_id,  # int64 [B]
    num_nodes,
    path_length,
    BLOCK_T: tl.constexpr,
):
    sequence = tl.program_id(0).to(tl.int64)
    position = tl.arange(0, BLOCK_T)
    offset = sequence * num_nodes + position
    best_id += sequence * num_nodes
    accepted_pos += sequence * path_length

    token = tl.load(token_ids + offset, mask=position < num_nodes, other=-1)  # [BLOCK_T]
    parent = tl.load(parent_pos + offset, mask=position < num_nodes, other=0)
    is_child = (position > 0) & (token >= 0)  # the root is its own parent, but not its child
    node = 0
    length = 1
    own_id = tl.load(best_id)
    tl.store(accepted_pos, 0)
    for depth in range(1, path_length):
        # Where no child carries the token the walk has ended: it stays, and finds none again.
        carries = is_child & (parent == node) & (token == own_id)
        child = tl.max(tl.where(carries, position, 0), 0)
        tl.store(accepted_pos + depth, child.to(tl.int64))
        length += (child > 0).to(tl.int32)
        node = tl.where(child > 0, child, node)
        own_id = tl.load(best_id + node)
    tl.store(num_accepted + sequence, length)
    tl.store(next_id + sequence, own_id)


def accept_path_triton(
    token_ids: Tensor, parent_pos: Tensor, best_id: Tensor, max_depth: int
) -> tuple[Tensor, Tensor, Tensor]:
    """token_ids, parent_pos and best_id [B, T] of a tree -> the fields of the `Verdict` of `accept_greedy`."""
    batch_size, num_nodes = token_ids.shape
    accepted_pos = best_id.new_empty(batch_size, max_depth + 1)
    num_accepted, next_id = best_id.new_empty(batch_size), best_id.new_empty(batch_size)
    with torch.cuda.device_of(best_id):  # Triton launches on the current device
        accept_path_kernel[(batch_size,)](
            token_ids.contiguous(),
            parent_pos.contiguous(),
            best_id.contiguous(),
            accepted_pos,
            num_accepted,
            next_id,
            num_nodes,
            max_depth + 1,
            BLOCK_T=triton.next_power_of_2(num_nodes),
            num_warps=NUM_WARPS,
        )
    return accepted_pos, num_accepted, next_id
