"""How each family of drafters is trained and written as a published checkpoint, for `bench.families`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from nanospec.checkpoints.save import save_drafter
from nanospec.target import Target
from nanospec.training.draft_trainer import DraftTrainer, DraftTrainingSettings
from nanospec.training.train_causal_lm import causal_lm_trainer, save_causal_lm
from nanospec.training.train_eagle3 import eagle3_trainer
from nanospec.training.train_medusa import medusa_trainer


class InTraining(NamedTuple):
    """A drafter to be trained, and what writes it into a directory as it then is."""

    trainer: DraftTrainer
    save: Callable[[Path], None]


class Recipe(NamedTuple):
    """title: of the family in tables; begin(target, its directory, counts of ids, settings)."""

    title: str
    begin: Callable[[Target, Path, Tensor, DraftTrainingSettings], InTraining]


def _eagle3(target: Target, directory: Path, counts: Tensor, settings: DraftTrainingSettings) -> InTraining:
    """The high feature is the last layer's input: the usual one, three layers lower, is half-way in a small target."""
    num_layers = target.config.num_hidden_layers
    layers = (2, num_layers // 2, num_layers - 1)
    trainer, drafter = eagle3_trainer(target, counts, settings, feature_layers=layers)
    return InTraining(trainer, lambda out: save_drafter(drafter, out, target=target))


def _medusa(target: Target, directory: Path, counts: Tensor, settings: DraftTrainingSettings) -> InTraining:
    trainer, student = medusa_trainer(target, counts, settings)
    return InTraining(trainer, lambda out: save_drafter(student.drafter(target), out, target=target))


def _causal_lm(target: Target, directory: Path, counts: Tensor, settings: DraftTrainingSettings) -> InTraining:
    trainer, model = causal_lm_trainer(target, counts, settings)
    return InTraining(trainer, lambda out: save_causal_lm(model, out, directory))


RECIPES = {
    "eagle3": Recipe("EAGLE-3", _eagle3),
    "medusa": Recipe("Medusa", _medusa),
    "causal-lm": Recipe("language model", _causal_lm),
}
