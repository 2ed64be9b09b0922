"""The fused distillation losses against autograd on the plain formula."""

from __future__ import annotations

import pytest
import torch

from nanospec.training.distillation import distillation_losses
from nanospec.training.sampled_softmax import CHUNK_TOKENS, CLASS_MULTIPLE

# Probabilities and sums in float32, whatever the dtype of the states.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
WEIGHTS = torch.tensor([1.0, 0.8, 0.64])


@pytest.mark.parametrize("num_tokens", [1, CHUNK_TOKENS + 44])
@pytest.mark.parametrize("num_classes", [50, CLASS_MULTIPLE])
def test_losses_and_gradients_are_those_of_the_soft_cross_entropy(num_tokens: int, num_classes: int) -> None:
    torch.manual_seed(0)
    teacher, rows = torch.randn(num_tokens, 8, dtype=torch.float64), torch.randn(num_classes, 8, dtype=torch.float64)
    log_weight = torch.rand(num_classes) * 2
    students = [torch.randn(num_tokens, 8, dtype=torch.float64, requires_grad=True) for _ in WEIGHTS]

    p = (teacher @ rows.T + log_weight).softmax(-1)
    log_q = [(student @ rows.T + log_weight).log_softmax(-1) for student in students]
    expected = torch.stack([-(p * part).sum(-1).mean() for part in log_q])
    losses = distillation_losses(teacher, rows, log_weight, students)
    torch.testing.assert_close(losses, expected.float(), **TOLERANCE)

    grads = torch.autograd.grad((losses * WEIGHTS).sum(), students)
    expected_grads = torch.autograd.grad((expected * WEIGHTS).sum(), students)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, **TOLERANCE)


def test_a_student_that_equals_the_teacher_has_the_teachers_entropy_and_no_gradient() -> None:
    torch.manual_seed(1)
    teacher, rows = torch.randn(5, 4), torch.randn(30, 4)
    student = teacher.clone().requires_grad_()
    loss = distillation_losses(teacher, rows, torch.zeros(30), [student])[0]
    entropy = torch.distributions.Categorical(logits=teacher @ rows.T).entropy().mean()
    torch.testing.assert_close(loss, entropy, **TOLERANCE)
    loss.backward()
    torch.testing.assert_close(student.grad, torch.zeros_like(teacher), **TOLERANCE)


def test_gradients_flow_into_the_students_only() -> None:
    teacher, rows = torch.randn(5, 4, requires_grad=True), torch.randn(30, 4, requires_grad=True)
    student = torch.randn(5, 4, requires_grad=True)
    distillation_losses(teacher, rows, torch.zeros(30), [student])[0].backward()
    assert teacher.grad is None
    assert rows.grad is None
    assert student.grad is not None
