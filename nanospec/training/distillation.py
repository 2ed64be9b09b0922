"""Soft cross-entropy of several student states against one teacher over sampled classes, gradients fused in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanospec.training.sampled_softmax import CHUNK_TOKENS, CLASS_MULTIPLE

NEVER = -1e4  # log-weight of padding: probability 0, and 0 times its logarithm is 0


class _FusedDistillation(torch.autograd.Function):
    """Chunk by chunk: the teacher's probabilities once, then every student's loss and gradient against them."""

    @staticmethod
    def forward(ctx, teacher: Tensor, rows: Tensor, log_weight: Tensor, *students: Tensor) -> Tensor:
        num_tokens, rows_t = teacher.shape[0], rows.t()
        losses = torch.zeros(len(students), dtype=torch.float32)
        grads = [torch.empty_like(student) for student in students]
        for first in range(0, num_tokens, CHUNK_TOKENS):
            part = slice(first, first + CHUNK_TOKENS)
            p = (teacher[part] @ rows_t).float().add_(log_weight).softmax(-1)
            for index, student in enumerate(students):
                log_q = (student[part] @ rows_t).float().add_(log_weight).log_softmax(-1)
                losses[index] -= p.flatten().dot(log_q.flatten())
                grads[index][part] = (log_q.exp_().sub_(p)).to(student.dtype) @ rows
        ctx.save_for_backward(*grads)
        ctx.num_tokens = num_tokens
        return losses / num_tokens

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scales = grad_outputs[0] / ctx.num_tokens
        grads = (grad * scale.to(grad.dtype) for grad, scale in zip(ctx.saved_tensors, scales, strict=True))
        return None, None, None, *grads


def distillation_losses(teacher: Tensor, rows: Tensor, log_weight: Tensor, students: list[Tensor]) -> Tensor:
    """Mean cross-entropy (nats) of every student's distribution under the teacher's, float32 [len(students)].

    teacher and students [N, D] are inputs of the same head, of which rows [S, D] and log_weight [S] hold the sampled
    classes (see `ClassSampler`). Gradients flow into the students only.
    """
    padding = -rows.shape[0] % CLASS_MULTIPLE
    rows = nn.functional.pad(rows, (0, 0, 0, padding))
    log_weight = nn.functional.pad(log_weight, (0, padding), value=NEVER)
    return _FusedDistillation.apply(teacher, rows, log_weight, *students)
