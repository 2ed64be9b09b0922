"""Float32 masters behind bf16 parameters."""

from __future__ import annotations

import copy

import torch
from torch import nn

from nanospec.training.master_weights import MasterWeights


def layer_and_weights() -> tuple[nn.Linear, MasterWeights]:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    weights = MasterWeights(dict(layer.named_parameters()), matrix_lr=1e-4, vector_lr=1e-4, weight_decay=0.0)
    return layer.bfloat16(), weights


def one_step(layer: nn.Linear, weights: MasterWeights, seed: int) -> None:
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed)).bfloat16()
    layer(inputs).square().sum().backward()
    weights.step(1.0)


def test_masters_move_by_steps_that_bf16_would_lose() -> None:
    layer, weights = layer_and_weights()
    before = {name: master.clone() for name, master in weights.masters.items()}
    one_step(layer, weights, 1)
    for name, parameter in layer.named_parameters():
        master = weights.masters[name]
        assert master.dtype == torch.float32
        assert not torch.equal(master, before[name])
        assert torch.equal(parameter, master.bfloat16())
        assert parameter.grad is None


def test_a_restored_state_continues_alike() -> None:
    layer, weights = layer_and_weights()
    one_step(layer, weights, 1)
    other, restored = layer_and_weights()
    restored.load_state_dict(copy.deepcopy(weights.state_dict()))
    for pair in ((layer, weights), (other, restored)):
        one_step(*pair, 2)
    assert all(torch.equal(weights.masters[name], restored.masters[name]) for name in weights.masters)
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), other.parameters(), strict=True))
