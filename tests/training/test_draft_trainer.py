"""What holds for drafters of every family in training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from nanospec.target import Target
from nanospec.training.draft_trainer import DraftTrainer, DraftTrainingSettings
from nanospec.training.train_causal_lm import causal_lm_trainer
from nanospec.training.train_eagle import eagle_trainer
from nanospec.training.train_eagle3 import eagle3_trainer
from nanospec.training.train_medusa import medusa_trainer
from tests.tiny_pair import VOCAB_SIZE, tiny_eagle3_target

SEQ_LEN = 16
FAMILIES: dict[str, Callable[..., tuple[DraftTrainer, Any]]] = {
    "eagle": eagle_trainer,
    "eagle3": eagle3_trainer,
    "medusa": medusa_trainer,
    "causal-lm": causal_lm_trainer,
}


def frozen_target() -> Target:
    return tiny_eagle3_target(0).requires_grad_(False)


def start(family: str, target: Target) -> DraftTrainer:
    settings = DraftTrainingSettings(SEQ_LEN, num_drawn=40, compile=False)
    return FAMILIES[family](target, torch.ones(VOCAB_SIZE), settings)[0]


def batch() -> Tensor:
    return torch.randint(VOCAB_SIZE, (4 * SEQ_LEN + 1,), generator=torch.Generator().manual_seed(4))


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_repeated_steps_lower_the_loss(family: str) -> None:
    trainer = start(family, frozen_target())
    losses = torch.tensor([trainer.step(batch(), 1.0) for _ in range(12)])
    assert losses.isfinite().all()
    assert losses[-3:].mean() < losses[:3].mean()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_restored_run_continues_alike(family: str) -> None:
    target = frozen_target()
    trainer = start(family, target)
    trainer.step(batch(), 1.0)
    saved = copy.deepcopy(trainer.state())
    again = start(family, target)
    again.load_state(saved)
    assert again.step(batch(), 1.0) == trainer.step(batch(), 1.0)
    expected, got = weights_of(trainer.student.module), weights_of(again.student.module)
    assert all(torch.equal(got[name], value) for name, value in expected.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_that_is_trained_moves_and_the_target_does_not(family: str) -> None:
    target = frozen_target()
    trainer = start(family, target)
    of_target, before = weights_of(target), weights_of(trainer.student.module)
    for _ in range(2):  # what starts at zero lets no gradient through to what stands before it
        trainer.step(batch(), 1.0)
    assert all(torch.equal(value, of_target[name]) for name, value in weights_of(target).items())
    after = weights_of(trainer.student.module)
    still = {name for name, value in before.items() if torch.equal(after[name], value)}
    frozen = {"model.embed_tokens.weight", "lm_head.weight"} if family == "causal-lm" else set()
    assert still == frozen


def test_a_target_with_a_bias_on_its_head_is_refused() -> None:
    config = LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    model = LlamaForCausalLM(config)
    model.lm_head = nn.Linear(8, 20, bias=True)
    with pytest.raises(NotImplementedError, match="target must have a head without a bias to be distilled"):
        start("eagle", Target(model))
