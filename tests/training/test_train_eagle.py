"""An EAGLE-1 drafter in training and in its file."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nanospec.checkpoints import load_eagle_drafter, save_eagle_drafter
from nanospec.drafters.eagle import EagleDrafter
from nanospec.target import Target
from nanospec.training.draft_trainer import DraftTrainer, DraftTrainingSettings, Reading
from nanospec.training.train_eagle import EagleStudent, eagle_trainer, published_config
from tests.tiny_families import family_model

VOCAB, SEQ_LEN, HIDDEN = 50, 16, 128
# float64 states of order 10 through one layer: the same sums in another order.
ATOL = 1e-10


def build_target(dtype: torch.dtype) -> Target:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    return Target(LlamaForCausalLM(config).to(dtype).requires_grad_(False))


def build_trainer(target: Target, noise: float) -> tuple[DraftTrainer, EagleDrafter]:
    settings = DraftTrainingSettings(SEQ_LEN, num_drawn=40, compile=False)
    return eagle_trainer(target, torch.ones(VOCAB), settings, noise)


def test_noise_moves_the_first_inputs_by_at_most_half_its_width() -> None:
    target = build_target(torch.float64)
    token_ids = torch.zeros(1, SEQ_LEN, dtype=torch.int64)
    features = torch.randn(1, SEQ_LEN, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    states = []
    for noise in (0.0, 0.5):
        trainer, drafter = build_trainer(target, noise)
        lesson = EagleStudent(drafter, noise).lesson(token_ids, Reading(features, features), trainer.generator)
        states.append(lesson.predicted[0])  # a new drafter passes the feature on
    distance = (states[1] - states[0]).abs()
    assert 0 < distance.max() <= 0.25 + ATOL


def test_a_step_is_finite_and_repeated_steps_lower_the_loss() -> None:
    trainer, _ = build_trainer(build_target(torch.bfloat16), noise=0.1)
    tokens = torch.randint(VOCAB, (4 * SEQ_LEN + 1,), generator=torch.Generator().manual_seed(4))
    losses = [trainer.step(tokens, 1.0) for _ in range(6)]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]


def test_the_trained_drafter_survives_its_file(tmp_path: Path) -> None:
    target = build_target(torch.bfloat16)
    _, drafter = build_trainer(target, noise=0.1)
    save_eagle_drafter(drafter, tmp_path, published_config(drafter, target))
    loaded = load_eagle_drafter(tmp_path, target)
    state = loaded.state_dict()
    assert all(torch.equal(state[name], value) for name, value in drafter.state_dict().items())
    assert loaded.shape == drafter.shape


def test_training_and_drafting_turn_by_the_same_angles(tmp_path: Path) -> None:
    """Angles that were rounded with the weights in training would differ from those of a float32 run of the file."""
    target = build_target(torch.bfloat16)
    _, drafter = build_trainer(target, noise=0.0)
    save_eagle_drafter(drafter, tmp_path, published_config(drafter, target))
    loaded = load_eagle_drafter(tmp_path, build_target(torch.float32))
    for trained, drafted in zip(drafter.rotation(SEQ_LEN - 1), loaded.rotation(SEQ_LEN - 1), strict=True):
        assert torch.equal(trained, drafted.bfloat16())


def test_a_target_that_caps_its_logits_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="target must not cap its logits to be distilled, got 6.0"):
        build_trainer(Target(family_model("gemma2")), noise=0.0)
