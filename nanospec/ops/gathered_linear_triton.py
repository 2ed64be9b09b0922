"""`gathered_linear` as a kernel that reads the selected rows where they lie.

    out[b, n, j] = Σ_d x[b, n, d] · source[row(b, j), d] + bias[draft_ids[b, j]]   for j < count[b], else -inf
    row(b, j)    = draft_ids[b, j] of the weight, or j of the packed rows

A program owns BLOCK_K columns and BLOCK_N tokens of one sequence and walks along D. A row is contiguous, so rows in any
order stream at the speed of memory; with few tokens that is the whole cost, and columns are cut fine enough to keep
every multiprocessor loading. Where even so there are fewer programs than multiprocessors, D is cut into S parts:

    partial[s, b, n, j] = Σ_{d in part s} x[b, n, d] · source[row(b, j), d]    added up by a second kernel, in order

A block wholly beyond `count` loads nothing. The block sizes are not tuned on a device.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MIN_BLOCK = 16  # the least that tl.dot takes
MAX_BLOCK_N = 64
NUM_STAGES = 4
PROGRAMS_PER_MULTIPROCESSOR = 2  # as many as splitting D aims at
MIN_STEPS = 4  # along D, so that the loads of a part overlap
BLOCK_SUM = 256  # columns of a program that adds partial sums


@triton.jit
def rows_dot(
    x_row,  # pointers [BLOCK_N]
    source_row,  # pointers [BLOCK_K]
    x_stride_d,
    source_stride_d,
    is_token,  # [BLOCK_N]
    is_active,  # [BLOCK_K]
    start,
    end,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # acc[n, j] = Σ_{start <= d < end} x[n, d] · source[row(j), d]
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for first in range(start, end, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        is_dim = d < end
        d = d.to(tl.int64)
        x_tile = tl.load(  # [BLOCK_N, BLOCK_D]
            x_row[:, None] + d[None, :] * x_stride_d, mask=is_token[:, None] & is_dim[None, :], other=0.0
        )
        source_tile = tl.load(  # [BLOCK_D, BLOCK_K]
            source_row[None, :] + d[:, None] * source_stride_d, mask=is_active[None, :] & is_dim[:, None], other=0.0
        )
        acc = tl.dot(x_tile, source_tile, acc, input_precision="ieee")
    return acc


@triton.jit
def active_count(count, sequence, count_stride, num_ids, HAS_COUNT: tl.constexpr):
    num_active = num_ids
    if HAS_COUNT:
        num_active = tl.minimum(tl.load(count + sequence * count_stride, mask=True, other=0), num_ids)
    return num_active


@triton.jit(do_not_specialize=["num_tokens", "num_splits"])
def gathered_linear_kernel(
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
    out,  # [B, n, K], or partial sums float32 [S, B, n, K]
    out_stride_s,
    out_stride_b,
    out_stride_n,
    out_stride_k,
    num_tokens,
    num_ids,
    hidden_size,
    num_splits,
    split_size,  # of D, a multiple of BLOCK_D
    HAS_ROWS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_COUNT: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    sequence = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2) % num_splits
    columns = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)  # [BLOCK_K]
    tokens = tl.program_id(2) // num_splits * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]

    num_active = active_count(count, sequence, count_stride, num_ids, HAS_COUNT)
    is_active = columns < num_active  # [BLOCK_K]
    is_token = tokens < num_tokens  # [BLOCK_N]
    ids_offset = sequence * ids_stride_b + columns.to(tl.int64) * ids_stride_k
    if HAS_ROWS:
        row = columns.to(tl.int64)
    else:
        row = tl.load(draft_ids + ids_offset, mask=is_active, other=0)
    source_row = source + sequence * source_stride_b + row * source_stride_row  # [BLOCK_K]
    x_row = x + sequence * x_stride_b + tokens.to(tl.int64) * x_stride_n  # [BLOCK_N]

    # no step at all where the whole block is beyond `count`
    start = split * split_size
    end = tl.where(tl.program_id(0) * BLOCK_K < num_active, tl.minimum(start + split_size, hidden_size), 0)
    acc = rows_dot(
        x_row, source_row, x_stride_d, source_stride_d, is_token, is_active, start, end, BLOCK_N, BLOCK_K, BLOCK_D
    )
    if HAS_BIAS:
        bias_row = tl.load(draft_ids + ids_offset, mask=is_active, other=0)
        acc += tl.load(bias + bias_row * bias_stride, mask=is_active, other=0.0).to(tl.float32)[None, :]

    # out[n, j] = acc[n, j] where j < count, else -inf; of partial sums only the former
    is_stored = columns < num_ids
    if IS_SPLIT:
        is_stored = is_active
    else:
        acc = tl.where(is_active[None, :], acc, float("-inf"))
    out_row = out + split.to(tl.int64) * out_stride_s + sequence * out_stride_b + tokens.to(tl.int64) * out_stride_n
    tl.store(
        out_row[:, None] + columns.to(tl.int64)[None, :] * out_stride_k,
        acc.to(out.dtype.element_ty),
        mask=is_token[:, None] & is_stored[None, :],
    )


@triton.jit(do_not_specialize=["num_splits"])
def add_partial_sums_kernel(
    partial,  # float32 [S, B, n, K], contiguous
    draft_ids,  # int64 [B, K]
    bias,  # [V]
    count,  # int32 [B]
    out,  # [B, n, K]
    ids_stride_b,
    ids_stride_k,
    bias_stride,
    count_stride,
    partial_stride_s,
    partial_stride_b,
    partial_stride_n,
    out_stride_b,
    out_stride_n,
    out_stride_k,
    num_ids,
    num_splits,
    HAS_BIAS: tl.constexpr,
    HAS_COUNT: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    token = tl.program_id(1).to(tl.int64)
    sequence = tl.program_id(2).to(tl.int64)
    columns = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)  # [BLOCK_K]
    is_active = columns < active_count(count, sequence, count_stride, num_ids, HAS_COUNT)

    # out[n, j] = Σ_s partial[s, n, j] + bias[id(j)] where j < count, else -inf
    total = tl.zeros((BLOCK_K,), tl.float32)
    part = partial + sequence * partial_stride_b + token * partial_stride_n + columns  # [BLOCK_K]
    for _ in range(num_splits):
        total += tl.load(part, mask=is_active, other=0.0)
        part += partial_stride_s
    if HAS_BIAS:
        ids_offset = sequence * ids_stride_b + columns.to(tl.int64) * ids_stride_k
        bias_row = tl.load(draft_ids + ids_offset, mask=is_active, other=0)
        total += tl.load(bias + bias_row * bias_stride, mask=is_active, other=0.0).to(tl.float32)
    total = tl.where(is_active, total, float("-inf"))
    out_row = out + sequence * out_stride_b + token * out_stride_n
    tl.store(out_row + columns.to(tl.int64) * out_stride_k, total.to(out.dtype.element_ty), mask=columns < num_ids)


def gathered_linear_triton(
    x: Tensor,
    weight: Tensor,
    draft_ids: Tensor,
    bias: Tensor | None = None,
    count: Tensor | None = None,
    rows: Tensor | None = None,
    out: Tensor | None = None,
    num_multiprocessors: int | None = None,
) -> Tensor:
    """As `gathered_linear`, whose checks come first; `out` [B, n, K], in x's dtype, is written if given.

    num_multiprocessors  to keep busy; None: those of x's device. It decides how D is split, and so how sums are rounded

    Raises TypeError for a dtype other than float16, bfloat16 or float32.
    """
    check_dtype(x)
    batch_size, num_tokens, hidden_size = x.shape
    num_ids = draft_ids.shape[1]
    if out is None:
        out = x.new_empty((batch_size, num_tokens, num_ids))
    if out.numel() == 0:
        return out
    block_n, block_k, block_d = block_sizes(num_tokens, x.dtype)
    num_blocks = triton.cdiv(num_ids, block_k) * batch_size * triton.cdiv(num_tokens, block_n)
    if num_multiprocessors is None:
        num_multiprocessors = multiprocessor_count(x.device)
    split_size = split_dims(hidden_size, block_d, num_blocks, num_multiprocessors)
    num_splits = max(triton.cdiv(hidden_size, split_size), 1)
    sums = out if num_splits == 1 else x.new_empty((num_splits, *out.shape), dtype=torch.float32)
    grid = (triton.cdiv(num_ids, block_k), batch_size, triton.cdiv(num_tokens, block_n) * num_splits)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        gathered_linear_kernel[grid](
            *kernel_operands(x, weight, draft_ids, bias, count, rows),
            sums,
            *((0, *sums.stride()) if num_splits == 1 else sums.stride()),
            num_tokens,
            num_ids,
            hidden_size,
            num_splits,
            split_size,
            HAS_ROWS=rows is not None,
            HAS_BIAS=bias is not None and num_splits == 1,
            HAS_COUNT=count is not None,
            IS_SPLIT=num_splits > 1,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            BLOCK_D=block_d,
            num_warps=4,
            num_stages=NUM_STAGES,
        )
        if num_splits > 1:
            _add_partial_sums(sums, draft_ids, bias, count, out)
    return out


def _add_partial_sums(
    partial: Tensor, draft_ids: Tensor, bias: Tensor | None, count: Tensor | None, out: Tensor
) -> None:
    batch_size, num_tokens, num_ids = out.shape
    add_partial_sums_kernel[(triton.cdiv(num_ids, BLOCK_SUM), num_tokens, batch_size)](
        partial,
        draft_ids,
        draft_ids if bias is None else bias,
        draft_ids if count is None else count,
        out,
        batch_stride(draft_ids),
        draft_ids.stride(1),
        0 if bias is None else bias.stride(0),
        0 if count is None else batch_stride(count),
        *partial.stride()[:3],
        *out.stride(),
        num_ids,
        partial.shape[0],
        HAS_BIAS=bias is not None,
        HAS_COUNT=count is not None,
        BLOCK_K=BLOCK_SUM,
    )


def check_dtype(x: Tensor) -> None:
    """Raises TypeError for what the kernels do not multiply."""
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise TypeError(f"x must be float16, bfloat16 or float32, got {x.dtype}")


def kernel_operands(
    x: Tensor, weight: Tensor, draft_ids: Tensor, bias: Tensor | None, count: Tensor | None, rows: Tensor | None
) -> tuple[Any, ...]:
    """The arguments that a kernel over gathered rows begins with: five tensors, then 3 + 3 + 2 + 1 + 1 strides."""
    return (
        x,
        weight if rows is None else rows,
        draft_ids,
        draft_ids if bias is None else bias,  # never read where absent
        draft_ids if count is None else count,
        *x.stride(),
        *((0, *weight.stride()) if rows is None else (batch_stride(rows), *rows.stride()[1:])),
        batch_stride(draft_ids),
        draft_ids.stride(1),
        0 if bias is None else bias.stride(0),
        0 if count is None else batch_stride(count),
    )


def block_sizes(num_tokens: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """(BLOCK_N, BLOCK_K, BLOCK_D): all tokens in one block up to 64, so that a row is read once.

    NUM_STAGES tiles of x and of the rows fit in 64 KiB of shared memory, the least of the devices meant.
    """
    block_n = min(max(triton.next_power_of_2(num_tokens), MIN_BLOCK), MAX_BLOCK_N)
    tile_bytes = 256 if block_n == MIN_BLOCK else 128  # of one row
    return block_n, block_n, tile_bytes // dtype.itemsize


def split_dims(hidden_size: int, block_d: int, num_blocks: int, num_multiprocessors: int) -> int:
    """Dimensions that one of num_blocks programs walks along: all of them, a multiple of block_d, if every
    multiprocessor has a program already; else so few that there are about PROGRAMS_PER_MULTIPROCESSOR."""
    num_steps = max(triton.cdiv(hidden_size, block_d), 1)
    num_splits = 1
    if num_blocks < num_multiprocessors:
        wanted = num_multiprocessors * PROGRAMS_PER_MULTIPROCESSOR // num_blocks
        num_splits = max(min(wanted, num_steps // MIN_STEPS), 1)
    return triton.cdiv(num_steps, num_splits) * block_d


def multiprocessor_count(device: torch.device) -> int:
    """Of a GPU; 1 for the CPU, where kernels are interpreted one program after another."""
    return 1 if device.type == "cpu" else torch.cuda.get_device_properties(device).multi_processor_count


def batch_stride(tensor: Tensor) -> int:
    """The stride of the leading dimension; 0 where it has length 1, as the same is then meant for every sequence."""
    return 0 if tensor.shape[0] == 1 else tensor.stride(0)
