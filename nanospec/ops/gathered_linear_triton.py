"""`gathered_linear` as one kernel that reads the selected rows where they lie.

    out[b, n, j] = Σ_d x[b, n, d] · source[row(b, j), d] + bias[draft_ids[b, j]]   for j < count[b], else -inf
    row(b, j)    = draft_ids[b, j] of the weight, or j of the packed rows

A program owns BLOCK_K columns and BLOCK_N tokens of one sequence and walks along D. A row is contiguous, so rows in any
order stream at the speed of memory; with few tokens that is the whole cost, and columns are cut fine enough to keep
every multiprocessor loading. A block wholly beyond `count` loads nothing. The block sizes are not tuned on a device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MIN_BLOCK = 16  # the least that tl.dot takes
MAX_BLOCK_N = 64
NUM_STAGES = 4


@triton.jit(do_not_specialize=["num_tokens"])
def gathered_linear_kernel(
    x,  # [B, n, D]
    source,  # weight [V, D] or rows [B, K, D]
    draft_ids,  # int64 [B, K]
    bias,  # [V]
    count,  # int32 [B]
    out,  # [B, n, K]
    num_tokens,
    num_ids,
    hidden_size,
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
    out_stride_b,
    out_stride_n,
    out_stride_k,
    HAS_ROWS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_COUNT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    sequence = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)  # [BLOCK_K]
    tokens = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    dims = tl.arange(0, BLOCK_D)  # [BLOCK_D]

    num_active = num_ids
    if HAS_COUNT:
        num_active = tl.minimum(tl.load(count + sequence * count_stride, mask=True, other=0), num_ids)
    is_active = columns < num_active  # [BLOCK_K]
    is_token = tokens < num_tokens  # [BLOCK_N]
    ids_offset = sequence * ids_stride_b + columns.to(tl.int64) * ids_stride_k
    if HAS_ROWS:
        row = columns.to(tl.int64)
    else:
        row = tl.load(draft_ids + ids_offset, mask=is_active, other=0)
    source_row = source + sequence * source_stride_b + row * source_stride_row  # [BLOCK_K]
    x_row = x + sequence * x_stride_b + tokens.to(tl.int64) * x_stride_n  # [BLOCK_N]

    # acc[n, j] = Σ_d x[n, d] · source[row(j), d]; no step at all where the whole block is beyond `count`
    # (tl.full is built in; tl.zeros is a kernel itself, compiled or interpreted as Triton was when it was imported)
    acc = tl.full((BLOCK_N, BLOCK_K), 0.0, tl.float32)
    end = tl.where(tl.program_id(0) * BLOCK_K < num_active, hidden_size, 0)
    for start in range(0, end, BLOCK_D):
        d = start + dims
        is_dim = d < hidden_size
        d = d.to(tl.int64)
        x_tile = tl.load(  # [BLOCK_N, BLOCK_D]
            x_row[:, None] + d[None, :] * x_stride_d, mask=is_token[:, None] & is_dim[None, :], other=0.0
        )
        source_tile = tl.load(  # [BLOCK_D, BLOCK_K]
            source_row[None, :] + d[:, None] * source_stride_d, mask=is_active[None, :] & is_dim[:, None], other=0.0
        )
        acc = tl.dot(x_tile, source_tile, acc, input_precision="ieee")
    if HAS_BIAS:
        bias_row = tl.load(draft_ids + ids_offset, mask=is_active, other=0)
        acc += tl.load(bias + bias_row * bias_stride, mask=is_active, other=0.0).to(tl.float32)[None, :]

    # out[n, j] = acc[n, j] where j < count, else -inf
    acc = tl.where(is_active[None, :], acc, float("-inf"))
    out_row = out + sequence * out_stride_b + tokens.to(tl.int64) * out_stride_n  # [BLOCK_N]
    tl.store(
        out_row[:, None] + columns.to(tl.int64)[None, :] * out_stride_k,
        acc.to(out.dtype.element_ty),
        mask=is_token[:, None] & (columns < num_ids)[None, :],
    )


def gathered_linear_triton(
    x: Tensor,
    weight: Tensor,
    draft_ids: Tensor,
    bias: Tensor | None = None,
    count: Tensor | None = None,
    rows: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """As `gathered_linear`, whose checks come first; `out` [B, n, K], in x's dtype, is written if given.

    Raises TypeError for a dtype other than float16, bfloat16 or float32.
    """
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise TypeError(f"x must be float16, bfloat16 or float32, got {x.dtype}")
    batch_size, num_tokens, hidden_size = x.shape
    num_ids = draft_ids.shape[1]
    if out is None:
        out = x.new_empty((batch_size, num_tokens, num_ids))
    if out.numel() == 0:
        return out
    source = weight if rows is None else rows
    block_n, block_k, block_d = block_sizes(num_tokens, x.dtype)
    grid = (triton.cdiv(num_ids, block_k), batch_size, triton.cdiv(num_tokens, block_n))
    with torch.cuda.device_of(x):  # Triton launches on the current device
        gathered_linear_kernel[grid](
            x,
            source,
            draft_ids,
            draft_ids if bias is None else bias,  # never read where absent
            draft_ids if count is None else count,
            out,
            num_tokens,
            num_ids,
            hidden_size,
            *x.stride(),
            *((0, *source.stride()) if rows is None else (_batch_stride(rows), *rows.stride()[1:])),
            _batch_stride(draft_ids),
            draft_ids.stride(1),
            0 if bias is None else bias.stride(0),
            0 if count is None else _batch_stride(count),
            *out.stride(),
            HAS_ROWS=rows is not None,
            HAS_BIAS=bias is not None,
            HAS_COUNT=count is not None,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            BLOCK_D=block_d,
            num_warps=4,
            num_stages=NUM_STAGES,
        )
    return out


def block_sizes(num_tokens: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """(BLOCK_N, BLOCK_K, BLOCK_D): all tokens in one block up to 64, so that a row is read once.

    NUM_STAGES tiles of x and of the rows fit in 64 KiB of shared memory, the least of the devices meant.
    """
    block_n = min(max(triton.next_power_of_2(num_tokens), MIN_BLOCK), MAX_BLOCK_N)
    tile_bytes = 256 if block_n == MIN_BLOCK else 128  # of one row
    return block_n, block_n, tile_bytes // dtype.itemsize


def _batch_stride(tensor: Tensor) -> int:
    """The stride of the leading dimension; 0 where it has length 1, as the same is then meant for every sequence."""
    return 0 if tensor.shape[0] == 1 else tensor.stride(0)
