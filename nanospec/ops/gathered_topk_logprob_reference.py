"""What `gathered_topk_logprob` means: log-softmax of the logits that are active, their best, one sequence at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from nanospec.ops.gathered_linear_reference import gathered_linear_reference
from nanospec.ops.smallest_id_topk_reference import smallest_id_topk_reference


def gathered_topk_logprob_reference(
    x: Tensor,
    weight: Tensor,
    draft_ids: Tensor,
    k: int,
    bias: Tensor | None = None,
    count: Tensor | None = None,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x [B, n, D], weight [V, D], draft_ids int64 [B or 1, K], bias [V], count int32 [B or 1], rows [B or 1, K, D] ->
    ids int64 [B, n, k], log-probabilities float32 [B, n, k]; (first of draft_ids, -inf) where there is none."""
    batch_size, num_tokens, num_ids = x.shape[0], x.shape[1], draft_ids.shape[1]
    counts = [num_ids] * batch_size if count is None else count.expand(batch_size).tolist()
    logits = gathered_linear_reference(x, weight, draft_ids, bias, count, rows)  # [B, n, K]
    vocabs = draft_ids.expand(batch_size, -1)
    best_ids = vocabs[:, None, :1].repeat(1, num_tokens, k)
    best_log_prob = torch.full((batch_size, num_tokens, k), float("-inf"), device=x.device)
    for sequence in range(batch_size):
        num_active = min(counts[sequence], num_ids)
        active = logits[sequence, :, :num_active]
        values, ids = smallest_id_topk_reference(active, vocabs[sequence, :num_active], k)
        log_prob = values - active.logsumexp(-1, keepdim=True)
        num_best = min(k, num_active)
        best_ids[sequence, :, :num_best] = ids
        best_log_prob[sequence, :, :num_best] = log_prob.masked_fill(log_prob.isnan(), float("-inf"))
    return best_ids, best_log_prob
