"""Drafting as training sees it: a drafter run over whole windows several times, each time on its own last states.

Step s feeds the states that step s - 1 predicted, as drafting does (HASS, Zhang et al. 2024; training-time test of
EAGLE-3, Li et al. 2025, section 3.2): position t attends to true features up to t - s + 1 and to predicted ones after
that.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanospec.drafters.eagle import EagleDrafter


class UnrolledAttention:
    """Causal attention of one unrolling step over the keys of the first step and, diagonally, of later ones."""

    def __init__(self, length: int, num_groups: int) -> None:
        self.num_groups = num_groups
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.distance = torch.arange(length)[:, None] - torch.arange(length)[None]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query [B, H, n, d]; key, value [B, KV, n, d] of this step -> [B, H, n, d]."""
        self.keys.append(key.repeat_interleave(self.num_groups, 1))
        self.values.append(value.repeat_interleave(self.num_groups, 1))
        step = len(self.keys)  # 1 for the first
        if step == 1:
            return nn.functional.scaled_dot_product_attention(query, self.keys[0], self.values[0], is_causal=True)
        query = query * query.shape[-1] ** -0.5
        # Position t sees first-step keys at s <= t - (step - 1); the first positions keep their own, to see something.
        hidden = (self.distance < step - 1) & ~((self.distance == 0) & (torch.arange(len(self.distance)) < step - 1))
        scores = [(query @ self.keys[0].mT).masked_fill(hidden, torch.finfo(query.dtype).min)]
        shifts = [step - 1 - later for later in range(1, step)]  # step j < this one predicted t - (step - j)
        for later, shift in enumerate(shifts, start=1):
            scores.append((query * _shifted(self.keys[later], shift)).sum(-1, keepdim=True))
        weights = torch.cat(scores, -1).softmax(-1)
        mixed = weights[..., : -len(shifts)] @ self.values[0]
        for later, shift in enumerate(shifts, start=1):
            column = weights.shape[-1] - len(shifts) + later - 1
            mixed = mixed + weights[..., column, None] * _shifted(self.values[later], shift)
        return mixed


def unroll(
    drafter: EagleDrafter, token_ids: Tensor, states: Tensor, num_steps: int, noise: Tensor | None = None
) -> list[Tensor]:
    """The drafter's states [B, n, D] after each of `num_steps` unrolling steps; the drafter has one layer.

    token_ids int64 [B, n], states [B, n, D]: row t holds a token and the fused feature of the position before it.
    noise [B, n, D] is added to the states of the first step.
    """
    rotation = drafter.rotation(token_ids.shape[1])
    attend = UnrolledAttention(token_ids.shape[1], drafter.shape.num_heads // drafter.shape.num_kv_heads)
    inputs, predicted = states if noise is None else states + noise, []
    for _ in range(num_steps):
        hidden, attention_input = drafter.enter(token_ids, inputs)
        predicted.append(drafter.leave(drafter.layers[0](hidden, rotation, attend, attention_input)))
        inputs = torch.cat((states[:, :1], predicted[-1][:, :-1]), 1)
    return predicted


def _shifted(rows: Tensor, shift: int) -> Tensor:
    """rows [B, H, n, d] -> row t holds row t - shift; the first ones stay."""
    return rows if shift == 0 else torch.cat((rows[:, :, :shift], rows[:, :, :-shift]), 2)
