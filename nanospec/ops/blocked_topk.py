"""Exact top-k of very wide rows: find the blocks that can hold it by their maxima, look only into those."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_SIZE = 256
COLUMN_BLOCK_SIZE = 64  # of logits that lie column by column: what is looked into then lies apart


def blocked_topk(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits of every row, descending: (values [n, k], ids int64 [n, k]).

    logits floating point [n, V]. Meant for small k (up to 16) and large V; right for any 1 <= k <= V.
    Column 0 is the first occurrence of the maximum, as in torch.argmax; among other equal values any id may be chosen.
    A NaN counts as the largest value, so a row that holds one shows it in column 0. Logits may also lie column by
    column, as `nanospec.ops.weight_first.columns` leaves them; a CPU then wants n to be a multiple of 64.

    Raises TypeError unless logits are floating point, ValueError unless they are 2-D and 1 <= k <= V.
    """
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    if logits.dim() != 2:
        raise ValueError(f"logits must be 2-D [n, V], got shape {tuple(logits.shape)}")
    num_rows, vocab_size = logits.shape
    if not 1 <= k <= vocab_size:
        raise ValueError(f"k must be between 1 and the number of columns {vocab_size}, got {k}")
    by_column = num_rows > 1 and logits.stride(0) == 1 and logits.stride(1) >= num_rows
    size = COLUMN_BLOCK_SIZE if by_column else BLOCK_SIZE
    num_blocks = vocab_size // size
    if num_blocks <= 2 * k:  # nothing to skip
        ids = _topk_pos(logits, k)
        return logits.gather(1, ids), ids

    # The k largest of the whole blocks lie in the k blocks with the largest maxima; the short tail is always looked at.
    tail_start = num_blocks * size
    blocks = logits[:, :tail_start].unflatten(1, (num_blocks, size))
    # A reduction is fast over dimensions in the order in which they lie.
    maxima = blocks.permute(1, 2, 0).amax(1).t().contiguous() if by_column else blocks.amax(-1)
    block_pos = _topk_pos(maxima, k)  # [n, k]
    within = torch.arange(size, device=logits.device)
    candidate_ids = (block_pos[:, :, None] * size + within).flatten(1)  # [n, k * size]
    if tail_start < vocab_size:
        tail_ids = torch.arange(tail_start, vocab_size, device=logits.device)
        candidate_ids = torch.cat((candidate_ids, tail_ids.expand(num_rows, -1)), 1)
    ids = candidate_ids.gather(1, _topk_pos(logits.gather(1, candidate_ids), k))
    return logits.gather(1, ids), ids


def blocked_argmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(largest value [n], its first position int64 [n]) of every row of logits [n, V]; otherwise as `blocked_topk`."""
    values, ids = blocked_topk(logits, 1)
    return values[:, 0], ids[:, 0]


def _topk_pos(scores: Tensor, k: int) -> Tensor:
    """Positions [n, k] of the k largest scores, descending; column 0 is the first position of the maximum.

    The first block that reaches the maximum is thus column 0 of `block_pos`, its ids come first among the candidates
    and the tail's last: the first maximum among the candidates is the first of the row.
    """
    first = scores.argmax(1, keepdim=True)
    if k == 1:
        return first
    pos = scores.topk(k).indices
    # Whatever stood in column 0 ties with `first`: if that was chosen elsewhere, they trade places.
    pos = torch.where(pos == first, pos[:, :1], pos)
    return torch.cat((first, pos[:, 1:]), 1)
