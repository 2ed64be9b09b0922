"""The sampled softmax against the full one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from nanospec.training.sampled_softmax import CHUNK_TOKENS, CLASS_MULTIPLE, ClassSampler, sampled_cross_entropy

# The loss is summed in float32 over a few hundred tokens of a few nats each; gradients likewise.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
# Standard errors: with a fixed seed and a symmetric estimate, 4 would be missed by one seed in 16,000.
MAX_STANDARD_ERRORS = 4.0


@pytest.mark.parametrize("num_tokens", [1, CHUNK_TOKENS, CHUNK_TOKENS + 44])
@pytest.mark.parametrize("num_classes", [50, CLASS_MULTIPLE])
def test_with_every_class_it_is_the_full_cross_entropy(num_tokens: int, num_classes: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(num_tokens, 8, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(num_classes, 8, dtype=torch.float64, requires_grad=True)
    goal = torch.randint(num_classes, (num_tokens,))
    expected = F.cross_entropy(hidden @ rows.T, goal)
    expected_grads = torch.autograd.grad(expected, (hidden, rows))
    loss = sampled_cross_entropy(hidden, rows, torch.zeros(num_classes), goal)
    torch.testing.assert_close(loss, expected.float(), **TOLERANCE)
    for grad, goal_grad in zip(torch.autograd.grad(loss, (hidden, rows)), expected_grads, strict=True):
        torch.testing.assert_close(grad, goal_grad, **TOLERANCE)


def test_log_weights_are_added_to_the_logits_and_a_factor_reaches_the_gradient() -> None:
    torch.manual_seed(1)
    hidden, rows = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    goal, log_weight = torch.randint(9, (6,)), torch.rand(9) * 3
    expected = 2.5 * F.cross_entropy(hidden @ rows.T + log_weight, goal)
    loss = 2.5 * sampled_cross_entropy(hidden, rows, log_weight, goal)
    torch.testing.assert_close(loss, expected, **TOLERANCE)
    for grad, goal_grad in zip(
        torch.autograd.grad(loss, (hidden, rows)), torch.autograd.grad(expected, (hidden, rows)), strict=True
    ):
        torch.testing.assert_close(grad, goal_grad, **TOLERANCE)


@given(
    vocab_size=st.integers(1, 60), num_drawn=st.integers(0, 80), batch_size=st.integers(1, 9), seed=st.integers(0, 999)
)
@settings(max_examples=50)
def test_drawn_ids_are_sorted_distinct_and_hold_the_batch_at_weight_one(
    vocab_size: int, num_drawn: int, batch_size: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    sampler = ClassSampler(torch.randint(50, (vocab_size,), generator=generator).float(), num_drawn)
    batch_ids = torch.randint(vocab_size, (batch_size,), generator=generator)
    class_ids, log_weight = sampler.draw(batch_ids, generator)

    assert class_ids.tolist() == sorted(set(class_ids.tolist()))
    in_batch = torch.isin(class_ids, batch_ids)
    assert set(batch_ids.tolist()) == set(class_ids[in_batch].tolist())
    assert log_weight[in_batch].eq(0).all()
    assert torch.equal(log_weight[~in_batch], -sampler.inclusion[class_ids[~in_batch]].log())
    assert log_weight.isfinite().all()


def test_a_large_enough_draw_takes_every_class_at_weight_one() -> None:
    sampler = ClassSampler(torch.arange(20.0), num_drawn=10_000)
    class_ids, log_weight = sampler.draw(torch.tensor([3]), torch.Generator().manual_seed(0))
    assert torch.equal(class_ids, torch.arange(20))
    assert torch.equal(log_weight, torch.zeros(20))


def test_the_partition_estimate_is_unbiased() -> None:
    vocab_size, num_draws = 200, 3000
    generator = torch.Generator().manual_seed(5)
    scores = torch.randn(vocab_size, generator=generator, dtype=torch.float64)
    sampler = ClassSampler(torch.arange(vocab_size).float(), num_drawn=40)
    batch_ids = torch.tensor([0, 17, 17, 150])
    estimates = []
    for _ in range(num_draws):
        class_ids, log_weight = sampler.draw(batch_ids, generator)
        estimates.append((scores[class_ids] + log_weight).exp().sum())
    inclusion = sampler.inclusion.double()
    inclusion[batch_ids] = 1.0
    # Independent Bernoulli(q) terms exp(s) / q: variance exp(2 s) (1 / q - 1) each.
    variance = (scores.mul(2).exp() * (1 / inclusion - 1)).sum()
    error = torch.stack(estimates).mean() - scores.exp().sum()
    assert abs(error) < MAX_STANDARD_ERRORS * (variance / num_draws).sqrt()
