"""`gathered_topk_logprob` in two launches; logits over the draft vocabulary stay in registers.

    blocks  a program per (block of columns, sequence, block of tokens), the logits l of BLOCK_K columns:
            block_max = max l,  block_sum = Σ exp(l - block_max),  the k largest keys of the block
    merge   a program per (token, sequence), over the blocks below `count`:
            lse = m + log Σ block_sum · exp(block_max - m)  with m = max block_max,  the k largest keys of all

    key     int64: the order of the logit in the upper half, MAX_ID - id in the lower. Larger keys come first, equal
            logits by ascending id, and both the logit and the id can be read back from a key.

Keys of one token are distinct, so the next best is the largest below the last: nothing is marked as taken. The order is
an int32, the bits of the float32 with those of negative numbers reversed: -0.0 becomes 0, NaN the largest.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanospec.ops.gathered_linear_triton import (
    NUM_STAGES,
    active_count,
    batch_stride,
    block_sizes,
    check_dtype,
    kernel_operands,
    multiprocessor_count,
    rows_dot,
)

MAX_BLOCK_K = 64
PROGRAMS_PER_MULTIPROCESSOR = 2  # blocks of columns grow, which leaves less to merge, while there are as many as this
MERGE_WIDTH = 1024  # keys that the merge holds at a time

NO_KEY = tl.constexpr(-(2**63))  # below the key of every logit
MAX_KEY = tl.constexpr(2**63 - 1)  # above it
MAX_ID = tl.constexpr(2**31 - 1)
MAGNITUDE = tl.constexpr(0x7FFFFFFF)  # of a float32, without its sign; as an order it is that of NaN
INFINITY = tl.constexpr(0x7F800000)


@triton.jit
def order_of(logits):
    bits = logits.to(tl.int32, bitcast=True)
    magnitude = bits & MAGNITUDE
    order = tl.where(bits < 0, -magnitude, magnitude)
    return tl.where(magnitude > INFINITY, MAGNITUDE, order)


@triton.jit
def logit_of(order):
    magnitude = tl.where(order < 0, -order, order).to(tl.float32, bitcast=True)
    return tl.where(order < 0, -magnitude, magnitude)


@triton.jit(do_not_specialize=["num_tokens", "num_blocks", "num_kept"])
def best_of_blocks_kernel(
    x,  # [B, n, D]
    source,  # weight [V, D] or rows [B, K, D]
    draft_ids,  # int64 [B, K]
    bias,  # [V]
    count,  # int32 [B]
    x_stride_b,
    x_stride_n,
    x_stride_d,
    source_stride_b,
    source_stride_row,
    source_stride_d,
    ids_stride_b,
    ids_stride_k,
    bias_stride,
    count_stride,
    block_max,  # float32 [B, n, num_blocks]
    block_sum,  # float32 [B, n, num_blocks]
    block_keys,  # int64 [B, n, num_blocks, num_kept]
    num_tokens,
    num_ids,
    hidden_size,
    num_blocks,
    num_kept,
    HAS_ROWS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_COUNT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    block = tl.program_id(0)
    sequence = tl.program_id(1).to(tl.int64)
    num_active = active_count(count, sequence, count_stride, num_ids, HAS_COUNT)
    if block * BLOCK_K >= num_active:
        return
    columns = block * BLOCK_K + tl.arange(0, BLOCK_K)  # [BLOCK_K]
    tokens = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    is_active = columns < num_active  # [BLOCK_K]
    is_token = tokens < num_tokens  # [BLOCK_N]
    ids_offset = sequence * ids_stride_b + columns.to(tl.int64) * ids_stride_k
    ids = tl.load(draft_ids + ids_offset, mask=is_active, other=0)  # [BLOCK_K]
    row = columns.to(tl.int64) if HAS_ROWS else ids
    source_row = source + sequence * source_stride_b + row * source_stride_row  # [BLOCK_K]
    x_row = x + sequence * x_stride_b + tokens.to(tl.int64) * x_stride_n  # [BLOCK_N]

    # logits[n, j] = Σ_d x[n, d] · source[row(j), d] + bias[id(j)] where j < count, else -inf
    logits = rows_dot(
        x_row, source_row, x_stride_d, source_stride_d, is_token, is_active, 0, hidden_size, BLOCK_N, BLOCK_K, BLOCK_D
    )
    if HAS_BIAS:
        logits += tl.load(bias + ids * bias_stride, mask=is_active, other=0.0).to(tl.float32)[None, :]
    logits = tl.where(is_active[None, :], logits, float("-inf"))

    # largest = max_j logits[n, j] but for NaN; total = Σ_j exp(logits[n, j] - largest), NaN where a logit is
    largest = tl.max(tl.where(logits == logits, logits, float("-inf")), 1)  # [BLOCK_N]
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    total = tl.sum(tl.exp(logits - shift[:, None]), 1)  # [BLOCK_N]
    slot = (sequence * num_tokens + tokens) * num_blocks + block  # int64 [BLOCK_N]
    tl.store(block_max + slot, largest, mask=is_token)
    tl.store(block_sum + slot, total, mask=is_token)

    keys = (order_of(logits).to(tl.int64) << 32) | (ids ^ MAX_ID)[None, :]  # of 31 bits: MAX_ID - id
    keys = tl.where(is_active[None, :], keys, NO_KEY)  # [BLOCK_N, BLOCK_K]
    for rank in range(num_kept):
        best = tl.max(keys, 1)  # [BLOCK_N]
        tl.store(block_keys + slot * num_kept + rank, best, mask=is_token)
        keys = tl.where(keys < best[:, None], keys, NO_KEY)


@triton.jit(do_not_specialize=["num_blocks", "num_kept", "num_best"])
def merge_best_kernel(
    draft_ids,  # int64 [B, K]
    count,  # int32 [B]
    ids_stride_b,
    count_stride,
    block_max,  # float32 [B, n, num_blocks]
    block_sum,  # float32 [B, n, num_blocks]
    block_keys,  # int64 [B, n, num_blocks, num_kept]
    best_ids,  # int64 [B, n, k]
    best_log_prob,  # float32 [B, n, k]
    num_ids,
    num_blocks,
    num_kept,
    num_best,
    HAS_COUNT: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_BEST: tl.constexpr,
    WIDTH: tl.constexpr,
):
    sequence = tl.program_id(1).to(tl.int64)
    token = sequence * tl.num_programs(0) + tl.program_id(0)  # among those of all sequences
    num_written = tl.cdiv(active_count(count, sequence, count_stride, num_ids, HAS_COUNT), BLOCK_K)
    lanes = tl.arange(0, WIDTH)  # [WIDTH]

    # lse = m + log Σ_b block_sum[b] · exp(block_max[b] - m), m = max_b block_max[b]
    highest = tl.full((WIDTH,), float("-inf"), tl.float32)
    for start in range(0, num_written, WIDTH):
        mask = start + lanes < num_written
        highest = tl.maximum(highest, tl.load(block_max + token * num_blocks + start + lanes, mask, float("-inf")))
    largest = tl.max(highest, 0)
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    total = tl.zeros((WIDTH,), tl.float32)
    for start in range(0, num_written, WIDTH):
        mask = start + lanes < num_written
        sums = tl.load(block_sum + token * num_blocks + start + lanes, mask, 0.0)
        total += sums * tl.exp(tl.load(block_max + token * num_blocks + start + lanes, mask, float("-inf")) - shift)
    log_sum_exp = shift + tl.log(tl.sum(total, 0))

    fallback_id = tl.load(draft_ids + sequence * ids_stride_b, mask=True, other=0)
    num_keys = num_written * num_kept
    last = tl.full((), MAX_KEY, tl.int64)
    ranks = tl.arange(0, BLOCK_BEST)  # [BLOCK_BEST]
    best_keys = tl.full((BLOCK_BEST,), NO_KEY, tl.int64)
    for rank in range(num_best):
        best = tl.full((WIDTH,), NO_KEY, tl.int64)
        for start in range(0, num_keys, WIDTH):
            lane = start + lanes
            keys = tl.load(block_keys + token * num_blocks * num_kept + lane, mask=lane < num_keys, other=NO_KEY)
            best = tl.maximum(best, tl.where(keys < last, keys, NO_KEY))
        last = tl.max(best, 0)
        best_keys = tl.where(ranks == rank, last, best_keys)

    # log p = logit - lse, with -inf for NaN
    is_found = best_keys > NO_KEY
    log_prob = logit_of((best_keys >> 32).to(tl.int32)) - log_sum_exp
    log_prob = tl.where(is_found & (log_prob == log_prob), log_prob, float("-inf"))
    ids = tl.where(is_found, (best_keys & MAX_ID) ^ MAX_ID, fallback_id)
    tl.store(best_log_prob + token * num_best + ranks, log_prob, mask=ranks < num_best)
    tl.store(best_ids + token * num_best + ranks, ids, mask=ranks < num_best)


def gathered_topk_logprob_triton(
    x: Tensor,
    weight: Tensor,
    draft_ids: Tensor,
    k: int,
    bias: Tensor | None = None,
    count: Tensor | None = None,
    rows: Tensor | None = None,
    num_multiprocessors: int | None = None,
) -> tuple[Tensor, Tensor]:
    """As `gathered_topk_logprob`, whose checks come first.

    num_multiprocessors  to keep busy; None: those of x's device. It decides how wide blocks are

    Raises TypeError for a dtype other than float16, bfloat16 or float32.
    """
    check_dtype(x)
    batch_size, num_tokens, hidden_size = x.shape
    num_ids = draft_ids.shape[1]
    best_ids = draft_ids.new_empty((batch_size, num_tokens, k))
    best_log_prob = x.new_empty((batch_size, num_tokens, k), dtype=torch.float32)
    if best_ids.numel() == 0:
        return best_ids, best_log_prob
    block_n, block_k, block_d = block_sizes(num_tokens, x.dtype)
    num_token_blocks = triton.cdiv(num_tokens, block_n)
    if num_multiprocessors is None:
        num_multiprocessors = multiprocessor_count(x.device)
    block_k = widen_block(block_k, num_ids, batch_size * num_token_blocks, num_multiprocessors)
    num_blocks = triton.cdiv(num_ids, block_k)
    blocks = (
        x.new_empty((batch_size, num_tokens, num_blocks), dtype=torch.float32),
        x.new_empty((batch_size, num_tokens, num_blocks), dtype=torch.float32),
        draft_ids.new_empty((batch_size, num_tokens, num_blocks, min(k, block_k))),
    )
    with torch.cuda.device_of(x):  # Triton launches on the current device
        best_of_blocks_kernel[(num_blocks, batch_size, num_token_blocks)](
            *kernel_operands(x, weight, draft_ids, bias, count, rows),
            *blocks,
            num_tokens,
            num_ids,
            hidden_size,
            *blocks[2].shape[2:],
            HAS_ROWS=rows is not None,
            HAS_BIAS=bias is not None,
            HAS_COUNT=count is not None,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            BLOCK_D=block_d,
            num_warps=4,
            num_stages=NUM_STAGES,
        )
        _merge_best(draft_ids, count, blocks, best_ids, best_log_prob, block_k)
    return best_ids, best_log_prob


def _merge_best(
    draft_ids: Tensor,
    count: Tensor | None,
    blocks: tuple[Tensor, Tensor, Tensor],
    best_ids: Tensor,
    best_log_prob: Tensor,
    block_k: int,
) -> None:
    batch_size, num_tokens, k = best_ids.shape
    merge_best_kernel[(num_tokens, batch_size)](
        draft_ids,
        draft_ids if count is None else count,
        batch_stride(draft_ids),
        0 if count is None else batch_stride(count),
        *blocks,
        best_ids,
        best_log_prob,
        draft_ids.shape[1],
        *blocks[2].shape[2:],
        k,
        HAS_COUNT=count is not None,
        BLOCK_K=block_k,
        BLOCK_BEST=triton.next_power_of_2(k),
        WIDTH=MERGE_WIDTH,
    )


def widen_block(block_k: int, num_ids: int, num_others: int, num_multiprocessors: int) -> int:
    """block_k doubled, up to MAX_BLOCK_K, while num_others programs per block of columns still fill the chip."""
    while block_k < MAX_BLOCK_K and num_ids // (2 * block_k) * num_others >= (
        PROGRAMS_PER_MULTIPROCESSOR * num_multiprocessors
    ):
        block_k *= 2
    return block_k
