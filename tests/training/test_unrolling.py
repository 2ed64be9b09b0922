"""Training unrolls a drafter exactly as drafting runs it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nanospec.drafters.eagle import EagleDrafter
from nanospec.training.unrolling import unroll
from tests.tiny_pair import tiny_drafter, tiny_eagle3_drafter, tiny_eagle3_target

SEQ_LEN, NUM_STEPS = 12, 4
# float64 states of order 10 through one layer: the same sums in another order.
ATOL = 1e-10


def chain_state(drafter: EagleDrafter, tokens: Tensor, features: Tensor, num_advances: int) -> Tensor:
    """State [D] of the drafter behind `tokens` [n], the last `num_advances` of which are drafted."""
    certain = tokens.shape[0] - num_advances
    drafter.reset(SEQ_LEN)
    state = drafter.extend(tokens[None, :certain], features[None, :certain])
    for depth in range(1, num_advances + 1):
        token = tokens[None, certain + depth - 1, None]
        state = drafter.advance(token, state, depth, torch.ones(1, 1, depth, dtype=torch.bool))
    return state[0, 0]


@pytest.mark.parametrize("kind", ["eagle", "eagle3", "eagle3 with normed states"])
def test_every_unrolling_step_is_a_chain_of_the_drafter(kind: str) -> None:
    """Row t holds token t + 1; step s takes rows 0 .. t - s + 1 with true features and drafts the s - 1 after them."""
    target = tiny_eagle3_target(0)
    if kind == "eagle":
        drafter, width = tiny_drafter(target, 1), target.head_weight.shape[1]
    else:
        switches = {"norm_output": True, "norm_before_residual": True, "fc_norm": True} if kind != "eagle3" else {}
        drafter, width = tiny_eagle3_drafter(target, 1, std=0.25, **switches), 3 * target.head_weight.shape[1]
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(target.vocab_size, (2, SEQ_LEN), generator=generator)
    features = torch.randn(2, SEQ_LEN, width, generator=generator, dtype=torch.float64)

    states = unroll(drafter, tokens, drafter.fuse(features), NUM_STEPS)
    assert len(states) == NUM_STEPS
    for step, predicted in enumerate(states, start=1):
        for sequence in range(2):
            for row in range(step - 1, SEQ_LEN):
                state = chain_state(drafter, tokens[sequence, : row + 1], features[sequence], step - 1)
                torch.testing.assert_close(predicted[sequence, row], state, rtol=0, atol=ATOL)


def test_noise_is_added_to_the_states_of_the_first_step() -> None:
    target = tiny_eagle3_target(0)
    drafter, generator = tiny_drafter(target, 1), torch.Generator().manual_seed(3)
    tokens = torch.randint(target.vocab_size, (1, SEQ_LEN), generator=generator)
    states = torch.randn(1, SEQ_LEN, drafter.shape.hidden_size, generator=generator, dtype=torch.float64)
    noise = torch.randn(states.shape, generator=generator, dtype=torch.float64)
    noisy, shifted = unroll(drafter, tokens, states, 2, noise), unroll(drafter, tokens, states + noise, 1)
    torch.testing.assert_close(noisy[0], shifted[0], rtol=0, atol=ATOL)
