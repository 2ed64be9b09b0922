"""`vocabulary_update` as one kernel: a program per sequence, the whole update in registers.

    is_last(i)  = token_seen[ids[i]] == clock + i      after the maximum: the last occurrence speaks for its id
    rank(i)     = number of new ids after i            newest first: candidates already lie in order of time
    slot(i)     = count + rank(i)                      while there are unused slots, which are taken in order
                = oldest[rank(i) - unused]             then the used slots, by the time they were seen
    is_placed   = rank < K and time(i) > time of that slot

Used slots are looked at only where one must leave. Sorting all of them costs more than the rest together: bisection
finds a time up to which there are enough of them, and no more than fit one block of pairs; only those are sorted.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Stands for `NEVER_LEAVES`: later than any clock, and leaves the low bits of a sorting key to the slot.
LATEST = tl.constexpr(2**50)
MIN_BLOCK_IDS = 256  # fewer cost the same, and would be compiled once more
MIN_BLOCK_SLOTS = 16
# Elements of the longer list per warp: 16 a thread, and few enough threads for each to have the registers for that.
WARP_ELEMENTS = 512


@triton.jit
def _oldest_slots(
    slot_seen,
    scratch,
    num_used,
    num_wanted,
    end_time,
    LOG_SLOTS: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
):
    """int64 [BLOCK_PAIRS], ascending: time · 2^LOG_SLOTS + slot of at least the `num_wanted` oldest used slots that may
    leave, or of all there are; LATEST · 2^LOG_SLOTS in their place where fewer."""
    slots = tl.arange(0, 2**LOG_SLOTS)
    seen = tl.load(slot_seen + slots, mask=slots < num_used, other=LATEST)  # [2^LOG_SLOTS]
    # num_old slots were seen up to `upper`, fewer than num_wanted up to `lower`. Times are distinct, so when these are
    # neighbours num_old is num_wanted at most, which fits.
    lower = tl.min(seen, 0) - 1
    upper = end_time
    num_old = tl.sum((seen <= upper).to(tl.int32), 0)
    while (num_old > BLOCK_PAIRS) & (upper - lower > 1):
        middle = lower + (upper - lower) // 2
        num_before = tl.sum((seen <= middle).to(tl.int32), 0)
        if num_before >= num_wanted:
            upper = middle
            num_old = num_before
        else:
            lower = middle
    is_old = seen <= upper
    place = tl.cumsum(is_old.to(tl.int32), 0) - 1
    tl.store(scratch + place, (seen << LOG_SLOTS) | slots, mask=is_old & (place < BLOCK_PAIRS))
    tl.debug_barrier()
    pairs = tl.arange(0, BLOCK_PAIRS)
    return tl.sort(tl.load(scratch + pairs, mask=pairs < num_old, other=LATEST << LOG_SLOTS))


@triton.jit
def _store_pairs(changed_slot, changed_id, slot, id, rank, is_placed, num_ids, capacity):
    """Those placed have the first ranks; the pairs from there on are (K, 0): nothing changed."""
    tl.store(changed_slot + rank, slot.to(tl.int64), mask=is_placed)
    tl.store(changed_id + rank, id.to(tl.int64), mask=is_placed)
    pair = tl.arange(0, slot.shape[0])
    is_left = (pair >= tl.sum(is_placed.to(tl.int32), 0)) & (pair < tl.minimum(num_ids, capacity))
    tl.store(changed_slot + pair, tl.full(slot.shape, 0, tl.int64) + capacity, mask=is_left)
    tl.store(changed_id + pair, tl.full(slot.shape, 0, tl.int64), mask=is_left)


@triton.jit(do_not_specialize=["num_ids"])
def vocabulary_update_kernel(
    ids,  # int64 [B, n]
    slot_token,  # int64 [B, K + 1]
    slot_seen,  # int64 [B, K + 1]
    token_slot,  # int32 [B, V + 1]
    token_seen,  # int64 [B, V + 1]
    count,  # int32 [B]
    clock,  # int64 [B]
    changed_slot,  # int64 [B, min(n, K)]
    changed_id,  # int64 [B, min(n, K)]
    scratch,  # int64 [B, BLOCK_PAIRS]
    num_ids,
    capacity,
    vocab_size,
    ids_stride_b,
    ids_stride_n,
    BLOCK_IDS: tl.constexpr,
    LOG_SLOTS: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
):
    sequence = tl.program_id(0).to(tl.int64)
    slot_token += sequence * (capacity + 1)
    slot_seen += sequence * (capacity + 1)
    token_slot += sequence * (vocab_size + 1)
    token_seen += sequence * (vocab_size + 1)
    lane = tl.arange(0, BLOCK_IDS)

    id_offset = sequence * ids_stride_b + lane.to(tl.int64) * ids_stride_n
    id = tl.load(ids + id_offset, mask=lane < num_ids, other=-1)  # [BLOCK_IDS]
    is_id = (id >= 0) & (id < vocab_size)
    id = id.to(tl.int32)  # half the registers
    now = tl.load(clock + sequence)
    num_used = tl.load(count + sequence)
    num_unused = capacity - num_used
    time = now + lane

    # is_last(i): of equal ids only the last carries the time that was stored, so what is left is distinct
    tl.atomic_max(token_seen + id, time, mask=is_id, sem="relaxed")
    tl.debug_barrier()
    is_last = is_id & (tl.load(token_seen + id, mask=is_id, other=-1) == time)
    held_slot = tl.load(token_slot + id, mask=is_last, other=-1)
    is_held = is_last & (held_slot >= 0)
    held_seen = tl.load(slot_seen + held_slot, mask=is_held, other=0)
    tl.store(slot_seen + held_slot, tl.maximum(held_seen, time), mask=is_held)  # the maximum spares pinned slots

    # rank(i) = number of new ids after i
    is_new = is_last & (held_slot < 0)
    num_new = tl.sum(is_new.to(tl.int32), 0)
    rank = num_new - tl.cumsum(is_new.to(tl.int32), 0)
    slot = num_used + rank
    is_placed = is_new & (rank < capacity)
    is_evicting = is_placed & (rank >= num_unused)
    num_wanted = tl.minimum(num_new, capacity) - num_unused
    if num_wanted > 0:
        tl.debug_barrier()  # slot_seen of held ids
        oldest = _oldest_slots(
            slot_seen, scratch + sequence * BLOCK_PAIRS, num_used, num_wanted, now + num_ids, LOG_SLOTS, BLOCK_PAIRS
        )
        victim = tl.gather(oldest, tl.minimum(tl.maximum(rank - num_unused, 0), BLOCK_PAIRS - 1), 0)  # [BLOCK_IDS]
        is_evicting = is_evicting & (time > (victim >> LOG_SLOTS))
        is_placed = is_placed & ((rank < num_unused) | is_evicting)
        slot = tl.where(is_evicting, (victim & (2**LOG_SLOTS - 1)).to(tl.int32), slot)

    evicted = tl.load(slot_token + slot, mask=is_evicting, other=0)
    tl.debug_barrier()  # all have read what leaves
    tl.store(token_slot + evicted, -1, mask=is_evicting)
    tl.store(token_slot + id, slot, mask=is_placed)
    tl.store(slot_token + slot, id.to(tl.int64), mask=is_placed)
    tl.store(slot_seen + slot, time, mask=is_placed)
    tl.store(count + sequence, num_used + tl.minimum(num_new, num_unused))
    tl.store(clock + sequence, now + num_ids)
    if (num_used == 0) & (num_new > 0):
        # Unused slots repeat the id of slot 0, which changes only here: once it is evicted there are no unused ones.
        slots = tl.arange(0, 2**LOG_SLOTS)
        newest = tl.sum(tl.where(is_placed & (rank == 0), id, 0).to(tl.int64), 0)
        newest = tl.full((2**LOG_SLOTS,), 0, tl.int64) + newest
        tl.store(slot_token + slots, newest, mask=(slots >= num_new) & (slots < capacity))
    pairs_offset = sequence * tl.minimum(num_ids, capacity)
    _store_pairs(changed_slot + pairs_offset, changed_id + pairs_offset, slot, id, rank, is_placed, num_ids, capacity)


def vocabulary_update_triton(
    ids: Tensor,
    slot_token: Tensor,
    slot_seen: Tensor,
    token_slot: Tensor,
    token_seen: Tensor,
    count: Tensor,
    clock: Tensor,
) -> tuple[Tensor, Tensor]:
    """As `vocabulary_update` for n >= 1, the same bits but for the scratch columns, which keep what they hold.

    Raises ValueError for a state that is not contiguous.
    """
    state = {
        "slot_token": slot_token,
        "slot_seen": slot_seen,
        "token_slot": token_slot,
        "token_seen": token_seen,
        "count": count,
        "clock": clock,
    }
    for name, tensor in state.items():
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()} for {tuple(tensor.shape)}")
    batch_size, num_ids = ids.shape
    capacity, vocab_size = slot_token.shape[1] - 1, token_slot.shape[1] - 1
    constants, num_warps = launch_constants(num_ids, capacity)
    changed_slot, changed_id = (ids.new_empty(batch_size, min(num_ids, capacity)) for _ in range(2))
    with torch.cuda.device_of(ids):  # Triton launches on the current device
        vocabulary_update_kernel[(batch_size,)](
            ids,
            *state.values(),
            changed_slot,
            changed_id,
            ids.new_empty(batch_size, constants["BLOCK_PAIRS"]),
            num_ids,
            capacity,
            vocab_size,
            *ids.stride(),
            **constants,
            num_warps=num_warps,
        )
    return changed_slot, changed_id


def launch_constants(num_ids: int, capacity: int) -> tuple[dict[str, int], int]:
    """The kernel's constants for n ids and K slots, and how many warps it takes."""
    block_ids = max(triton.next_power_of_2(num_ids), MIN_BLOCK_IDS)
    block_slots = max(triton.next_power_of_2(capacity), MIN_BLOCK_SLOTS)
    constants = {
        "BLOCK_IDS": block_ids,
        "LOG_SLOTS": block_slots.bit_length() - 1,
        "BLOCK_PAIRS": min(block_ids, block_slots),
    }
    return constants, max(max(block_ids, block_slots) // WARP_ELEMENTS, 4)
