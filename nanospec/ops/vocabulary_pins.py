"""Ids that stay in a least-recently-used set until they are released: fixed-shape tensor work beside its updates.

The state is that of `vocabulary_update`, which both change in place; neither waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanospec.ops.vocabulary_update import NEVER_LEAVES, vocabulary_update


def pin_ids(
    ids: Tensor,
    slot_token: Tensor,
    slot_seen: Tensor,
    token_slot: Tensor,
    token_seen: Tensor,
    count: Tensor,
    clock: Tensor,
) -> tuple[Tensor, Tensor]:
    """Make `ids` int64 [B, P], distinct and inside the vocabulary, members of every sequence's set that never leave.

    At most K ids are pinned at a time; the caller counts. Where there is no room, what was seen longest ago leaves.
    To be pinned is not to be seen: `token_seen` stays. Returns what changed, as `vocabulary_update`.
    """
    seen = token_seen.gather(1, ids)
    change = vocabulary_update(ids, slot_token, slot_seen, token_slot, token_seen, count, clock)
    token_seen.scatter_(1, ids, seen)
    slot_seen.scatter_(1, token_slot.gather(1, ids).long(), NEVER_LEAVES)
    return change


def release_ids(
    ids: Tensor,
    since: Tensor,
    slot_token: Tensor,
    slot_seen: Tensor,
    token_slot: Tensor,
    token_seen: Tensor,
    count: Tensor,
) -> tuple[Tensor, Tensor]:
    """Give up the pins of `ids` int64 [B, P], all of them pinned now.

    Ids seen at `since` int64 [B] or later stay as ordinary members, as old as they are; the others leave, and the last
    slots in use move into the holes, so that the used ones are 0..count-1 again. Returns (slot, id), int64 [B, P]:
    slots that changed and what they hold now; (K, 0) where nothing did.

    Example: slots 5 9 7 8 3, where 7 and 9 are released and only 9 was seen: slots 5 9 3 8, changed (2, 3).
    """
    capacity, vocab_size, num_ids = slot_token.shape[1] - 1, token_slot.shape[1] - 1, ids.shape[1]
    columns = torch.arange(capacity + 1, device=ids.device)
    slot, seen = token_slot.gather(1, ids).long(), token_seen.gather(1, ids)
    stays = seen >= since[:, None]
    slot_seen.scatter_(1, slot, seen)
    left = torch.where(stays, capacity, slot)  # [B, P]
    token_slot.scatter_(1, torch.where(stays, vocab_size, ids), -1)
    num_used = count - (~stays).sum(1, dtype=count.dtype)

    # The r-th hole takes the r-th id behind the new end: there are as many of both.
    is_left = torch.zeros_like(slot_token, dtype=torch.bool).scatter_(1, left, True)
    behind = num_used[:, None] + torch.arange(num_ids, device=ids.device)
    is_moving = (behind < count[:, None]) & ~is_left.gather(1, behind.clamp(max=capacity))
    behind = torch.where(is_moving, behind, capacity)
    is_hole = left < num_used[:, None]
    holes = ids.new_full((ids.shape[0], num_ids + 1), capacity)
    holes.scatter_(1, torch.where(is_hole, is_hole.cumsum(1) - 1, num_ids), left)
    target = torch.where(is_moving, holes.gather(1, (is_moving.cumsum(1) - 1).clamp(min=0)), capacity)
    moved_id = torch.where(is_moving, slot_token.gather(1, behind), vocab_size)
    slot_seen.scatter_(1, target, slot_seen.gather(1, behind))
    token_slot.scatter_(1, moved_id, target.int())
    token_slot[:, vocab_size] = -1
    moved_id = moved_id.masked_fill_(~is_moving, 0)
    slot_token.scatter_(1, target, moved_id)

    count.copy_(num_used)
    is_unused = columns >= num_used[:, None]
    torch.where(is_unused, columns - capacity, slot_seen, out=slot_seen)
    first_id = slot_token[:, :1].masked_fill(num_used[:, None] == 0, 0)
    torch.where(is_unused, first_id, slot_token, out=slot_token)
    return target, moved_id
