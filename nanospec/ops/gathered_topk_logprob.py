"""The best of the draft vocabulary after every token, with log-probabilities: all that a tree needs of the head."""

from __future__ import annotations

import torch
from torch import Tensor

from nanospec.ops.gathered_linear import check_operands, gathered_linear
from nanospec.ops.smallest_id_topk import smallest_id_topk

MAX_BEST = 64


@torch.no_grad()
def gathered_topk_logprob(
    x: Tensor,
    weight: Tensor,
    draft_ids: Tensor,
    k: int,
    bias: Tensor | None = None,
    count: Tensor | None = None,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(ids int64 [B, n, k], log_prob float32 [B, n, k]) of the k largest logits, descending, ties to the smallest id.

    logits = x · weight[draft_ids]ᵀ + bias[draft_ids]      over the columns below `count`
    log_prob = logits - log Σ exp(logits)                  in float32

    x         [B, n, D]
    weight    [V, D]
    draft_ids int64 [B or 1, K]  below 2**31, distinct in the columns below `count`
    bias      [V]
    count     int32 [B or 1]     None: all K are active
    rows      [B or 1, K, D]     a copy of weight[draft_ids] that is read in the weight's place

    Where fewer than k are active: -inf and one of draft_ids. NaN is the largest logit, all NaNs are equal; a
    log-probability that is not a number comes out as -inf, so that nothing undefined is proposed. No gradient.

    On CUDA two kernels compute this and no logits reach memory: they are float32 throughout. On a CPU, and for float64,
    it is `gathered_linear`, whose logits are rounded to the dtype of x, then log-sum-exp and `smallest_id_topk`: in
    float16 and bfloat16 the two may therefore order near-ties differently.

    Raises ValueError for shapes that do not fit, tensors on different devices and unless 1 <= k <= min(K, 64),
    TypeError for `draft_ids` that are not int64, a `count` that is not int32 or a weight, bias or rows of another dtype
    than x.
    """
    _check(x, weight, draft_ids, k, bias, count, rows)
    if x.device.type != "cuda" or x.dtype == torch.float64:
        return _composed(x, weight, draft_ids, k, bias, count, rows)
    from nanospec.ops.gathered_topk_logprob_triton import gathered_topk_logprob_triton

    return gathered_topk_logprob_triton(x, weight, draft_ids, k, bias, count, rows)


def _composed(
    x: Tensor,
    weight: Tensor,
    draft_ids: Tensor,
    k: int,
    bias: Tensor | None,
    count: Tensor | None,
    rows: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The same from the ops that exist, on any device."""
    return best_of_logits(gathered_linear(x, weight, draft_ids, bias, count, rows), draft_ids, k)


def best_of_logits(logits: Tensor, draft_ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `gathered_topk_logprob`, of logits [B, n, K] that exist, -inf where unused; raises nothing."""
    if logits.dtype != torch.float64:
        logits = logits.float()
    values, ids = smallest_id_topk(logits, draft_ids[:, None], k)
    log_prob = (values - logits.logsumexp(-1, keepdim=True)).float()
    return ids, log_prob.masked_fill_(log_prob.isnan(), float("-inf"))


def _check(
    x: Tensor,
    weight: Tensor,
    draft_ids: Tensor,
    k: int,
    bias: Tensor | None,
    count: Tensor | None,
    rows: Tensor | None,
) -> None:
    check_operands(x, weight, draft_ids, bias, count, rows)
    most = min(draft_ids.shape[1], MAX_BEST)
    if not 1 <= k <= most:
        raise ValueError(f"k must be between 1 and min(K, {MAX_BEST}) = {most}, got {k}")
