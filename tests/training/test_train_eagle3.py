"""An EAGLE-3 drafter in training, and in its published file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nanospec.checkpoints import load_drafter, save_drafter
from nanospec.drafters.eagle3 import Eagle3Drafter
from nanospec.records import DraftVocab
from nanospec.target import Target
from nanospec.training.draft_trainer import DraftTrainer, DraftTrainingSettings
from nanospec.training.train_eagle3 import eagle3_trainer, new_drafter
from tests.tiny_pair import VOCAB_SIZE, tiny_eagle3_target, tiny_target

SEQ_LEN = 16
# float64: the sums of one layer in another order.
ATOL = 1e-10
# The gains of a norm, seen through its eps of 1e-6 and float32.
NORM_RTOL = 1e-5


def trained(target: Target) -> tuple[DraftTrainer, Eagle3Drafter, Tensor]:
    """A trainer, its drafter after two steps, and the batch."""
    settings = DraftTrainingSettings(SEQ_LEN, num_drawn=40, compile=False)
    trainer, drafter = eagle3_trainer(target.requires_grad_(False), torch.ones(VOCAB_SIZE), settings)
    tokens = torch.randint(VOCAB_SIZE, (2 * SEQ_LEN + 1,), generator=torch.Generator().manual_seed(4))
    for _ in range(2):
        trainer.step(tokens, 1.0)
    return trainer, drafter, tokens


def test_what_was_trained_is_what_its_file_drafts(tmp_path: Path) -> None:
    """A row of the first lesson through the target's head is the scores of the drafter that is read back."""
    target = tiny_eagle3_target(0)
    trainer, drafter, tokens = trained(target)
    save_drafter(drafter, tmp_path, target=target)
    loaded = load_drafter(tmp_path, target)
    assert isinstance(loaded, Eagle3Drafter)
    assert loaded.lm_head is None

    window = tokens[:-1].view(-1, SEQ_LEN)
    reading = trainer.read(window)
    predicted = trainer.student.lesson(window, reading, trainer.generator).predicted[0]
    loaded.reset(SEQ_LEN)
    state = loaded.extend(window[:1, 1:11], reading.features[:1, :10])
    vocab = DraftVocab(torch.arange(VOCAB_SIZE)[None], torch.tensor([VOCAB_SIZE]), loaded.head.weight[None], True)
    expected = target.head(predicted[:1, 9:10]).detach()
    torch.testing.assert_close(loaded.logits(state, vocab), expected, rtol=0, atol=ATOL)


def test_features_are_the_inputs_of_the_drafters_layers_and_the_goal_is_the_next_position() -> None:
    target = tiny_eagle3_target(0)
    trainer, drafter, tokens = trained(target)
    window = tokens[:-1].view(-1, SEQ_LEN)
    states = target.model(window, output_hidden_states=True)
    reading = trainer.read(window)
    assert drafter.feature_layers == (2, 3, 4)
    expected = torch.cat([states.hidden_states[layer] for layer in (2, 3, 4)], -1)
    torch.testing.assert_close(reading.features, expected, rtol=0, atol=ATOL)
    goal = trainer.student.lesson(window, reading, trainer.generator).goal
    torch.testing.assert_close(target.head(goal), states.logits[:, 1:], rtol=0, atol=ATOL)


def test_a_fresh_drafter_says_what_the_target_would_say_after_its_high_layer() -> None:
    target = tiny_eagle3_target(0)
    drafter = new_drafter(target).double()
    features = torch.randn(1, 5, 3 * drafter.shape.hidden_size, dtype=torch.float64)
    expected = target.model.model.norm(features[..., -drafter.shape.hidden_size :])
    torch.testing.assert_close(drafter.before_head(drafter.fuse(features)), expected, rtol=NORM_RTOL, atol=ATOL)


def test_other_layers_are_read_where_they_are_named(tmp_path: Path) -> None:
    target = tiny_eagle3_target(0)
    save_drafter(new_drafter(target, [1, 3, 6]), tmp_path)
    loaded = load_drafter(tmp_path, target)
    assert isinstance(loaded, Eagle3Drafter)
    assert loaded.feature_layers == (1, 3, 6)


def test_a_target_whose_layers_coincide_is_refused() -> None:
    with pytest.raises(ValueError, match="feature_layers must be distinct layers between 0 and 1 of the target"):
        new_drafter(tiny_target(0))
