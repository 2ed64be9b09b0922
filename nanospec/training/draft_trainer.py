"""Distils a target into a drafter of any family: the drafter says what it predicts, the rest is the same for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from nanospec.target import Target
from nanospec.training.distillation import distillation_losses
from nanospec.training.master_weights import MasterWeights
from nanospec.training.sampled_softmax import ClassSampler

LATER_WEIGHT = 0.8  # of a step or head, relative to the one before it


@dataclass(frozen=True)
class DraftTrainingSettings:
    """seq_len: tokens of a window; num_drawn: expected number of classes beside the batch's own; compile: the target's
    pass goes through torch.compile, which needs a C compiler."""

    seq_len: int = 512
    num_drawn: int = 2048
    matrix_lr: float = 0.01
    vector_lr: float = 0.003
    seed: int = 0
    compile: bool = True


class Reading(NamedTuple):
    """What the target made of a window: last_states [B, L, D] after its norm, features [B, L, F] that the drafter asks
    for (the same where it asks for none)."""

    last_states: Tensor
    features: Tensor


class Lesson(NamedTuple):
    """predicted: inputs of the target's head [B, n, D], one per unrolling step or head; goal [B, n, D]: the target's
    own, whose next-token distribution all of them should give."""

    predicted: list[Tensor]
    goal: Tensor


class Student(Protocol):
    """A drafter in training."""

    @property
    def module(self) -> nn.Module:
        """Its parameters that require gradients are trained."""

    @property
    def feature_layers(self) -> tuple[int, ...] | None:
        """Layers of the target whose inputs it reads, as in `Target`."""

    @property
    def feature_weight(self) -> float:
        """Of the distance between what it predicts and the target's own, beside the distillation loss."""

    def lesson(self, token_ids: Tensor, reading: Reading, generator: torch.Generator) -> Lesson:
        """What it predicts from token_ids int64 [B, L] and what the target read there."""


class DraftTrainer:
    """Float32 master weights, compute in the target's dtype, one optimizer step per batch of packed tokens.

    counts: occurrences of every id in the corpus, float32 [V].

    Raises NotImplementedError for a target whose logits are capped or biased.
    """

    def __init__(self, target: Target, student: Student, counts: Tensor, settings: DraftTrainingSettings) -> None:
        if target.logit_soft_cap is not None:
            raise NotImplementedError(f"target must not cap its logits to be distilled, got {target.logit_soft_cap}")
        if target.head_bias is not None:
            raise NotImplementedError("target must have a head without a bias to be distilled, got one with a bias")
        self.target, self.student, self.settings = target, student, settings
        self.generator = torch.Generator().manual_seed(settings.seed)
        live = {name: value for name, value in student.module.named_parameters() if value.requires_grad}
        self.weights = MasterWeights(live, settings.matrix_lr, settings.vector_lr, weight_decay=0.01)
        for parameter in live.values():  # not the module: angles of rotation stay float32
            parameter.data = parameter.data.to(target.dtype)
        self.sampler = ClassSampler(counts, settings.num_drawn)
        self.read = torch.compile(self._read, dynamic=False) if settings.compile else self._read

    @torch.no_grad()
    def _read(self, token_ids: Tensor) -> Reading:
        layers = self.student.feature_layers
        asked = None if layers is None else list(layers)
        body = self.target.model.get_decoder()
        output = body(input_ids=token_ids, use_cache=False, output_hidden_states=asked)
        last_states = output.last_hidden_state
        if layers is None:
            return Reading(last_states, last_states)
        return Reading(last_states, torch.cat([output.hidden_states[layer] for layer in layers], -1))

    def step(self, tokens: Tensor, lr_factor: float) -> float:
        """One update on int64 [n + 1] packed tokens; returns the first prediction's distillation loss in nats."""
        token_ids = tokens[:-1].view(-1, self.settings.seq_len)
        predicted, goal = self.student.lesson(token_ids, self.read(token_ids), self.generator)
        class_ids, log_weight = self.sampler.draw(tokens, self.generator)
        rows = self.target.head_weight.detach()[class_ids]
        teacher = goal.flatten(0, 1).contiguous()
        losses = distillation_losses(teacher, rows, log_weight, [p.flatten(0, 1).contiguous() for p in predicted])
        total = torch.zeros(())
        for depth, (loss, prediction) in enumerate(zip(losses, predicted, strict=True)):
            if self.student.feature_weight:
                distance = nn.functional.smooth_l1_loss(prediction, goal)
                loss = loss + self.student.feature_weight * distance.float()
            total = total + LATER_WEIGHT**depth * loss
        total.backward()
        self.weights.step(lr_factor)
        return float(losses[0].detach())

    def state(self) -> dict:
        return {"weights": self.weights.state_dict(), "generator": self.generator.get_state()}

    def load_state(self, state: dict) -> None:
        self.weights.load_state_dict(state["weights"])
        self.generator.set_state(state["generator"])
