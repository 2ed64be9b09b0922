"""Medusa heads in training, and in their published file."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from nanospec.checkpoints import load_drafter, save_drafter
from nanospec.drafters.medusa import MedusaDrafter
from nanospec.records import DraftVocab
from nanospec.training.draft_trainer import DraftTrainingSettings, Reading
from nanospec.training.train_medusa import MedusaStudent, medusa_trainer
from tests.tiny_pair import VOCAB_SIZE, tiny_target

SEQ_LEN, NUM_HEADS = 16, 3
# float64: the sums of one block in another order.
ATOL = 1e-10


def test_fresh_heads_pass_on_what_lies_as_far_back_as_they_look_ahead() -> None:
    """Windows of 7 positions, 3 heads: rows are positions 3 to 6; head d read positions 3 - d to 6 - d."""
    positions = torch.arange(7.0)[None, :, None].expand(2, 7, 4)
    lesson = MedusaStudent(4, NUM_HEADS, 2).lesson(torch.zeros(2, 7), Reading(positions, positions), torch.Generator())
    assert lesson.goal[0, :, 0].tolist() == [3, 4, 5, 6]
    assert [head[0, :, 0].tolist() for head in lesson.predicted] == [[2, 3, 4, 5], [1, 2, 3, 4], [0, 1, 2, 3]]


def test_what_was_trained_is_what_its_file_drafts(tmp_path: Path) -> None:
    target = tiny_target(0).requires_grad_(False)
    settings = DraftTrainingSettings(SEQ_LEN, num_drawn=40, compile=False)
    trainer, student = medusa_trainer(target, torch.ones(VOCAB_SIZE), settings, NUM_HEADS, num_layers=2)
    tokens = torch.randint(VOCAB_SIZE, (2 * SEQ_LEN + 1,), generator=torch.Generator().manual_seed(4))
    for _ in range(3):
        trainer.step(tokens, 1.0)
    save_drafter(student.drafter(target), tmp_path, target=target)
    assert load_file(tmp_path / "model.safetensors").keys() == student.module.state_dict().keys()
    loaded = load_drafter(tmp_path, target)
    assert isinstance(loaded, MedusaDrafter)
    assert loaded.shape.num_outputs == 0

    ids = torch.arange(VOCAB_SIZE)[None]
    vocab = DraftVocab(ids, torch.tensor([VOCAB_SIZE]), target.head_weight[None], True)
    features = trainer.read(tokens[None, :9]).features
    state = loaded.extend(tokens[None, 1:10], features)
    for depth, head in enumerate(student.module, start=1):
        expected = target.head(head(features[:, -1:])).detach()
        torch.testing.assert_close(loaded.logits(state, vocab), expected, rtol=0, atol=ATOL)
        state = loaded.advance(ids[:, :1], state, depth, torch.ones(1, 1, depth, dtype=torch.bool))
