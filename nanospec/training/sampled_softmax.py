"""Softmax over 131k classes at the cost of a few thousand: the classes of the batch plus a weighted, corrected draw."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASS_MULTIPLE = 1024  # few distinct shapes: oneDNN keeps memory for every one that it has seen
CHUNK_TOKENS = 256  # logits [256, S] in float32 stay in the cache of one socket


class ClassSampler:
    """Chooses the classes of one step.

    All ids of the batch enter with weight 1. Every other id c enters with probability q_c (independently, more often
    when frequent) and weight 1 / q_c, so that sum_c weight_c exp(s_c) is an unbiased estimate of the full partition
    function given the batch (Bengio & Senecal 2008, importance-sampled softmax).
    """

    def __init__(self, counts: Tensor, num_drawn: int, power: float = 0.75, uniform_share: float = 0.3) -> None:
        weighted = (counts + 0.1).pow(power)
        share = (1 - uniform_share) * weighted / weighted.sum() + uniform_share / counts.numel()
        self.inclusion = (share * num_drawn).clamp(max=1.0)

    def draw(self, batch_ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns class ids int64 [S], sorted, and log-weights float32 [S] to be added to their logits."""
        keep = torch.rand(self.inclusion.shape, generator=generator) < self.inclusion
        log_weight = -self.inclusion.log()
        keep[batch_ids] = True
        log_weight[batch_ids] = 0.0
        class_ids = keep.nonzero().squeeze(1)
        return class_ids, log_weight[class_ids]


class _FusedSampledCrossEntropy(torch.autograd.Function):
    """Loss and gradients chunk by chunk, so that logits [N, S] never exist as a whole."""

    @staticmethod
    def forward(ctx, hidden: Tensor, rows: Tensor, log_weight: Tensor, target_pos: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32)
        grad_hidden, grad_rows = torch.empty_like(hidden), torch.zeros(rows.shape, dtype=torch.float32)
        rows_t, num_tokens = rows.t(), hidden.shape[0]
        for first in range(0, num_tokens, CHUNK_TOKENS):
            part = slice(first, first + CHUNK_TOKENS)
            index = target_pos[part, None]
            log_prob = (hidden[part] @ rows_t).float().add_(log_weight).log_softmax(-1)
            total -= log_prob.gather(1, index).sum()
            grad_logits = log_prob.exp_()
            grad_logits.scatter_add_(1, index, torch.full(index.shape, -1.0))
            grad_logits = grad_logits.to(hidden.dtype)
            grad_hidden[part] = grad_logits @ rows
            grad_rows += grad_logits.t() @ hidden[part]
        ctx.save_for_backward(grad_hidden, grad_rows.to(rows.dtype))
        ctx.num_tokens = num_tokens
        return total / num_tokens

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_rows = ctx.saved_tensors
        scale = grad_outputs[0] / ctx.num_tokens
        return grad_hidden * scale.to(grad_hidden.dtype), grad_rows * scale.to(grad_rows.dtype), None, None


def sampled_cross_entropy(hidden: Tensor, rows: Tensor, log_weight: Tensor, target_pos: Tensor) -> Tensor:
    """Mean cross-entropy (nats) over the sampled classes.

    hidden [N, D], rows [S, D] of the classes, log_weight float32 [S] from `ClassSampler.draw`, target_pos int64 [N]
    positions in the class list. Gradients flow into hidden and rows.
    """
    padding = -rows.shape[0] % CLASS_MULTIPLE
    rows = nn.functional.pad(rows, (0, 0, 0, padding))
    log_weight = nn.functional.pad(log_weight, (0, padding), value=float("-inf"))
    return _FusedSampledCrossEntropy.apply(hidden, rows, log_weight, target_pos)
