"""One step of a least-recently-used set of token ids as fixed-shape tensor work: no host sync, no Python set."""

from __future__ import annotations

import torch
from torch import Tensor

# slot_seen of a pinned slot, and token_seen of the scratch id: later than any clock, so never a victim, never new.
NEVER_LEAVES = 2**62

# What one program of the kernel sorts and keeps in registers.
MAX_KERNEL_IDS = 1024
MAX_KERNEL_SLOTS = 4096


def vocabulary_update(
    ids: Tensor,
    slot_token: Tensor,
    slot_seen: Tensor,
    token_slot: Tensor,
    token_seen: Tensor,
    count: Tensor,
    clock: Tensor,
) -> tuple[Tensor, Tensor]:
    """Move `ids` to the recent end of every sequence's set, in place; what was seen longest ago leaves.

    ids        int64 [B, n]     oldest first; an id outside [0, V) means "none"; n is any number, also above K
    slot_token int64 [B, K+1]   id held by a slot; an unused slot repeats the id of slot 0
    slot_seen  int64 [B, K+1]   when that id was last seen; slot - K where unused; `NEVER_LEAVES` where pinned
    token_slot int32 [B, V+1]   slot of an id, -1 if absent: the inverse of slot_token on used slots
    token_seen int64 [B, V+1]   when an id was last seen; only grows, hence never needs clearing
    count      int32 [B]        used slots, always 0..count-1
    clock      int64 [B]        time of the next candidate
    Column K of the slots and column V of the tokens are scratch, where masked writes go. The caller checks sizes.

    Returns (slot, id), int64 [B, min(n, K)]: slots that changed and what they hold now; (K, 0) where nothing did.

    Newcomers, newest first, meet the slots seen longest ago, oldest first, and take those that are older than
    themselves. One list falls and the other rises, so exactly the most recent ids of the union stay: an exact LRU.
    Example, K = 2 and empty: ids [7, 3, 7] leave {3, 7}; then [5] evicts 3.
    """
    capacity, vocab_size = slot_token.shape[1] - 1, token_slot.shape[1] - 1
    num_ids = ids.shape[1]
    num_pairs = min(num_ids, capacity)
    if num_ids == 0:
        return ids, ids
    if has_kernel(ids, capacity):
        from nanospec.ops.vocabulary_update_triton import vocabulary_update_triton

        return vocabulary_update_triton(ids, slot_token, slot_seen, token_slot, token_seen, count, clock)

    ids = torch.where((ids < 0) | (ids >= vocab_size), vocab_size, ids)
    time = clock[:, None] + torch.arange(num_ids, device=ids.device)
    clock += num_ids
    token_seen.scatter_reduce_(1, ids, time, "amax")
    slot = token_slot.gather(1, ids).long()  # [B, n]
    absent = slot < 0
    slot_seen.scatter_reduce_(1, torch.where(absent, capacity, slot), time, "amax")

    # Of equal ids only the last occurrence carries the time that was just stored.
    is_new = absent & (token_seen.gather(1, ids) == time)
    newest = torch.where(is_new, time, -NEVER_LEAVES).topk(num_pairs)
    oldest = slot_seen[:, :capacity].topk(num_pairs, largest=False)
    is_placed = newest.values > oldest.values
    placed_id = torch.where(is_placed, ids.gather(1, newest.indices), vocab_size)
    placed_slot = torch.where(is_placed, oldest.indices, capacity)

    is_evicted = is_placed & (oldest.values >= 0)
    evicted_id = torch.where(is_evicted, slot_token.gather(1, oldest.indices), vocab_size)
    count += (is_placed & ~is_evicted).sum(1)
    token_slot.scatter_(1, evicted_id, -1)
    token_slot.scatter_(1, placed_id, placed_slot.int())
    token_slot[:, vocab_size] = -1
    slot_seen.scatter_(1, placed_slot, newest.values)
    slot_token.scatter_(1, placed_slot, placed_id)
    torch.where(slot_seen < 0, slot_token[:, :1].clone(), slot_token, out=slot_token)
    return placed_slot, placed_id.masked_fill_(~is_placed, 0)


def has_kernel(ids: Tensor, capacity: int) -> bool:
    """Whether one kernel does the update of K slots with `ids` [B, n]; PyTorch takes other devices and larger sizes."""
    return ids.is_cuda and ids.shape[1] <= MAX_KERNEL_IDS and capacity <= MAX_KERNEL_SLOTS
