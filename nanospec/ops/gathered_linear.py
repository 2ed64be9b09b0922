"""The output projection over selected rows of the head: what a drafter scores instead of the whole vocabulary.

Registered as `torch.ops.nanospec.gathered_linear`, so that graphs hold it as one node with a gradient of its own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanospec.ops.weight_first import is_weight_first, product_columns, reads_weight_first

OP_NAME = "nanospec::gathered_linear"
# oneDNN keeps memory for every distinct shape it has met: the computed width grows in steps of this many columns.
WIDTH_STEP = 64

torch.library.define(
    OP_NAME,
    "(Tensor x, Tensor weight, Tensor draft_ids, Tensor? bias=None, Tensor? count=None, Tensor? rows=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_OP = torch.ops.nanospec.gathered_linear.default


def gathered_linear(
    x: Tensor,
    weight: Tensor,
    draft_ids: Tensor,
    bias: Tensor | None = None,
    count: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """Logits [B, n, K] in the dtype of x, new: x · weight[draft_ids]ᵀ + bias[draft_ids].

    x         [B, n, D]
    weight    [V, D]
    draft_ids int64 [B or 1, K]  may repeat
    bias      [V]
    count     int32 [B or 1]     columns from `count` on come out as -inf; None: all K are active
    rows      [B or 1, K, D]     a copy of weight[draft_ids] that is read, and trained, in the weight's place

    A leading dimension of 1 means the same for every sequence. On a CPU only the columns below `count` are computed
    where the ids are shared; on CUDA a kernel reads `count` on the device, and float64 goes through plain PyTorch.

    Raises ValueError for shapes that do not fit and for tensors on different devices, TypeError for `draft_ids` that
    are not int64, a `count` that is not int32 or a weight, bias or rows of another dtype than x. Ids outside [0, V)
    are the caller's mistake: checking them would read them back from the device.
    """
    check_operands(x, weight, draft_ids, bias, count, rows)
    return _OP(x, weight, draft_ids, bias, count, rows)


def shared_gathered_linear(
    x: Tensor,
    weight: Tensor,
    draft_ids: Tensor,
    bias: Tensor | None = None,
    count: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """x [.., D], draft_ids int64 [K], count int32 [1], rows [K, D] -> logits [.., K]: the same ids for all of x.

    Otherwise as `gathered_linear`. Raises ValueError unless x has a dimension and draft_ids and rows have these shapes.
    """
    if x.dim() < 1:
        raise ValueError(f"x must be [.., D], got shape {tuple(x.shape)}")
    if draft_ids.dim() != 1:
        raise ValueError(f"draft_ids must be [K], got shape {tuple(draft_ids.shape)}")
    if rows is not None and rows.dim() != 2:
        raise ValueError(f"rows must be [K, D], got shape {tuple(rows.shape)}")
    hidden = x.reshape(1, -1, x.shape[-1])
    logits = gathered_linear(hidden, weight, draft_ids[None], bias, count, None if rows is None else rows[None])
    return logits.reshape(*x.shape[:-1], draft_ids.shape[0])


def rows_linear(x: Tensor, rows: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [B, n, D], rows [B or 1, K, D], bias [B or 1, K] -> [B, n, K]; one dense product where the rows are shared."""
    if rows.shape[0] == 1:
        # Two-dimensional and contiguous: on strided 3-D input torch would copy the rows into a batched product.
        tokens = x.reshape(-1, x.shape[-1])
        if is_weight_first(tokens, rows[0]):
            logits = product_columns(tokens, rows[0], None if bias is None else bias[0]).t()
        else:
            logits = F.linear(tokens, rows[0], None if bias is None else bias[0])
        return logits.view(*x.shape[:-1], rows.shape[1])
    # A bfloat16 product on a CPU copies its second operand unless it lies as it is read: rows first, as they lie.
    logits = (rows @ x.mT).mT.contiguous()
    return logits if bias is None else logits + bias[:, None]


def check_operands(
    x: Tensor, weight: Tensor, draft_ids: Tensor, bias: Tensor | None, count: Tensor | None, rows: Tensor | None
) -> None:
    """Raises what `gathered_linear` raises."""
    _check_product(x, weight, draft_ids)
    if bias is not None:
        if bias.dim() != 1 or bias.shape[0] != weight.shape[0]:
            raise ValueError(f"bias must be [{weight.shape[0]}], got shape {tuple(bias.shape)}")
        _check_like(x, "bias", bias, x.dtype)
    if count is not None:
        if count.dim() != 1 or count.shape[0] not in (1, x.shape[0]):
            raise ValueError(f"count must be [{x.shape[0]} or 1], got shape {tuple(count.shape)}")
        _check_like(x, "count", count, torch.int32)
    if rows is not None:
        if rows.dim() != 3 or rows.shape[:2] != draft_ids.shape or rows.shape[2] != x.shape[2]:
            expected = (*draft_ids.shape, x.shape[2])
            raise ValueError(f"rows must be {expected}, a row for each of draft_ids, got shape {tuple(rows.shape)}")
        _check_like(x, "rows", rows, x.dtype)


def _check_product(x: Tensor, weight: Tensor, draft_ids: Tensor) -> None:
    if x.dim() != 3 or weight.dim() != 2 or x.shape[2] != weight.shape[1]:
        raise ValueError(f"x must be [B, n, D] and weight [V, D], got {tuple(x.shape)} and {tuple(weight.shape)}")
    if draft_ids.dim() != 2 or draft_ids.shape[0] not in (1, x.shape[0]):
        raise ValueError(f"draft_ids must be [{x.shape[0]} or 1, K], got shape {tuple(draft_ids.shape)}")
    if draft_ids.dtype != torch.int64:
        raise TypeError(f"draft_ids must be int64, got {draft_ids.dtype}")
    if x.dtype != weight.dtype:
        raise TypeError(f"weight must have the dtype of x, {x.dtype}, got {weight.dtype}")
    if not x.device == weight.device == draft_ids.device:
        devices = f"{x.device}, {weight.device}, {draft_ids.device}"
        raise ValueError(f"x, weight and draft_ids must be on one device, got {devices}")


def _check_like(x: Tensor, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
    if tensor.device != x.device:
        raise ValueError(f"{name} must be on the device of x, {x.device}, got {tensor.device}")


def _on_cpu(
    x: Tensor,
    weight: Tensor,
    draft_ids: Tensor,
    bias: Tensor | None = None,
    count: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    if draft_ids.shape[0] > 1 or (count is not None and count.shape[0] > 1):
        return _in_full(x, weight, draft_ids, bias, count, rows)
    # Reading the count costs nothing here: there is no device to wait for.
    num_ids = draft_ids.shape[1]
    num_active = num_ids if count is None else min(int(count.item()), num_ids)
    width = min(-(-num_active // WIDTH_STEP) * WIDTH_STEP, num_ids)
    if width < num_ids:
        draft_ids = draft_ids[:, :width]
        rows = None if rows is None else rows[:, :width]
    if rows is None:
        rows = _pick_rows(weight, draft_ids)
    if not _is_column_major(x, draft_ids):
        logits = rows_linear(x, rows, None if bias is None else bias[draft_ids])
        if num_active == num_ids:
            return logits
        return F.pad(logits[..., :num_active], (0, num_ids - num_active), value=float("-inf"))
    columns = product_columns(x.reshape(-1, x.shape[2]), rows[0], None if bias is None else bias[draft_ids[0]])
    if num_active < num_ids:
        columns = F.pad(columns[:num_active], (0, 0, 0, num_ids - num_active), value=float("-inf"))
    return columns.t().view(*x.shape[:2], num_ids)


def _is_column_major(x: Tensor, draft_ids: Tensor) -> bool:
    """Whether the result is laid out column by column, [K, B * n]: then what is not active is one block."""
    return reads_weight_first(x) and draft_ids.shape[0] == 1


def _on_cuda(
    x: Tensor,
    weight: Tensor,
    draft_ids: Tensor,
    bias: Tensor | None = None,
    count: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    if x.dtype == torch.float64:
        return _in_full(x, weight, draft_ids, bias, count, rows)
    from nanospec.ops.gathered_linear_triton import gathered_linear_triton

    return gathered_linear_triton(x, weight, draft_ids, bias, count, rows)


def _in_full(
    x: Tensor, weight: Tensor, draft_ids: Tensor, bias: Tensor | None, count: Tensor | None, rows: Tensor | None
) -> Tensor:
    """All K columns in plain PyTorch, those from `count` on masked afterwards."""
    if rows is None:
        rows = _pick_rows(weight, draft_ids)
    logits = rows_linear(x, rows, None if bias is None else bias[draft_ids]).contiguous()  # as the fake promises
    return logits if count is None else logits.masked_fill_(_is_unused(draft_ids, count)[:, None], float("-inf"))


def _pick_rows(weight: Tensor, draft_ids: Tensor) -> Tensor:
    """[B or 1, K, D]"""
    return weight.index_select(0, draft_ids.flatten()).unflatten(0, draft_ids.shape)


def _is_unused(draft_ids: Tensor, count: Tensor) -> Tensor:
    """bool [B or 1, K]: the columns from `count` on."""
    return torch.arange(draft_ids.shape[1], device=count.device) >= count[:, None]


def _fake(
    x: Tensor,
    weight: Tensor,
    draft_ids: Tensor,
    bias: Tensor | None = None,
    count: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    batch_size, num_tokens, num_ids = x.shape[0], x.shape[1], draft_ids.shape[1]
    if _is_column_major(x, draft_ids) and (count is None or count.shape[0] == 1):
        return x.new_empty((num_ids, batch_size * num_tokens)).t().unflatten(0, (batch_size, num_tokens))
    return x.new_empty((batch_size, num_tokens, num_ids))


def _without_autocast(device_type: str) -> Any:
    """The op computes in the dtype of x, as its fake promises, also where autocast would lower the product inside."""

    def call(*args: Any) -> Tensor:
        with torch.autocast(device_type, enabled=False):
            return _OP(*args)

    return call


torch.library.impl(OP_NAME, "cpu", _on_cpu)
torch.library.impl(OP_NAME, "cuda", _on_cuda)
torch.library.register_fake(OP_NAME, _fake)
torch.library.impl(OP_NAME, "AutocastCPU", _without_autocast("cpu"))
torch.library.impl(OP_NAME, "AutocastCUDA", _without_autocast("cuda"))


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, draft_ids, _, count, rows = inputs
    ctx.vocab_size = weight.shape[0]
    ctx.save_for_backward(x, weight if rows is None else None, draft_ids, count, rows)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """g = grad with unused columns 0: dx = g · rows, drows = gᵀ · x, dbias = Σ g; dweight = drows summed by id."""
    x, weight, draft_ids, count, rows = ctx.saved_tensors
    needs: tuple[bool, ...] = ctx.needs_input_grad  # the dispatcher drops trailing arguments that equal their defaults
    needs_x, needs_weight, _, needs_bias, _, needs_rows = (*needs, *[False] * (6 - len(needs)))
    is_unused = None if count is None else _is_unused(draft_ids, count)
    if is_unused is not None:
        grad = grad.masked_fill(is_unused[:, None], 0.0)

    grad_x = grad_weight = grad_bias = grad_rows = None
    if needs_x:
        grad_x = _grad_of_x(grad, _pick_rows(weight, draft_ids) if rows is None else rows, is_unused)
    if needs_rows or (needs_weight and rows is None):
        grad_rows = _grad_of_rows(grad, x, draft_ids.shape[0] == 1)
        if rows is None:
            grad_weight, grad_rows = _sum_by_id(draft_ids, grad_rows.flatten(0, 1), ctx.vocab_size), None
    if needs_bias:
        per_column = grad.sum(1, keepdim=True).sum(0 if draft_ids.shape[0] == 1 else 1)  # [1 or B, K]
        grad_bias = _sum_by_id(draft_ids, per_column.flatten(), ctx.vocab_size)
    return grad_x, grad_weight, None, grad_bias, None, grad_rows


def _grad_of_x(grad: Tensor, rows: Tensor, is_unused: Tensor | None) -> Tensor:
    """grad [B, n, K], rows [B or 1, K, D], is_unused [B or 1, K] -> [B, n, D]"""
    is_shared = rows.shape[0] == 1
    if is_unused is not None:  # unused rows may hold anything, and 0 · NaN is NaN
        rows = rows.masked_fill((is_unused.all(0, keepdim=True) if is_shared else is_unused)[..., None], 0.0)
    return (grad.flatten(0, 1) @ rows[0]).unflatten(0, grad.shape[:2]) if is_shared else grad @ rows


def _grad_of_rows(grad: Tensor, x: Tensor, is_shared: bool) -> Tensor:
    """grad [B, n, K], x [B, n, D] -> [1 if shared, else B, K, D]"""
    return (grad.flatten(0, 1).mT @ x.flatten(0, 1))[None] if is_shared else grad.mT @ x


def _sum_by_id(draft_ids: Tensor, per_column: Tensor, vocab_size: int) -> Tensor:
    """[number of draft_ids, ..] -> [V, ..]"""
    zeros = per_column.new_zeros((vocab_size, *per_column.shape[1:]))
    return zeros.index_add(0, draft_ids.flatten(), per_column)


torch.library.register_autograd(OP_NAME, _backward, setup_context=_save_for_backward)
