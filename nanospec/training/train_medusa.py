"""Trains Medusa heads for a target by distillation: head d learns what the target says d places further on.

    python -m nanospec.training.train_medusa --corpus train.jsonl.xz --target DIR --out runs/medusa --minutes 25

Medusa-1 (Cai et al. 2024, section 2.2.1) over a frozen target. All heads score with the target's own head: rows of
their own, [V, D] each, would be most of the weights. A checkpoint says so by holding no output rows.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanospec.checkpoints.medusa import build_medusa_drafter
from nanospec.checkpoints.save import save_drafter
from nanospec.drafters.medusa import MedusaDrafter
from nanospec.target import Target
from nanospec.training.draft_run import draft_parser, read_inputs, run_training, settings_of
from nanospec.training.draft_trainer import DraftTrainer, DraftTrainingSettings, Lesson, Reading

NUM_HEADS, NUM_LAYERS = 5, 1  # as published


class ResBlock(nn.Module):
    """x + silu(W x + b), nearly the identity at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + F.silu(self.linear(hidden))


class MedusaStudent:
    """Medusa heads in training, one module each, whose parameters carry the published names."""

    feature_layers = None
    feature_weight = 0.0

    def __init__(self, width: int, num_heads: int, num_layers: int) -> None:
        self.module = nn.ModuleList(
            nn.Sequential(*(ResBlock(width) for _ in range(num_layers))) for _ in range(num_heads)
        )

    def lesson(self, token_ids: Tensor, reading: Reading, generator: torch.Generator) -> Lesson:
        """Row p of head d: from the feature of position p - d what the target's head reads at position p."""
        num_heads, features = len(self.module), reading.features
        first, last = num_heads, features.shape[1]  # positions that all heads have something to say about
        predicted = [head(features[:, first - d : last - d]) for d, head in enumerate(self.module, start=1)]
        return Lesson(predicted, reading.last_states[:, first:])

    def drafter(self, target: Target) -> MedusaDrafter:
        """A drafter over copies of the weights as they are now."""
        tensors = {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}
        return build_medusa_drafter(Path("in memory"), tensors, target)


def medusa_trainer(
    target: Target,
    counts: Tensor,
    settings: DraftTrainingSettings,
    num_heads: int = NUM_HEADS,
    num_layers: int = NUM_LAYERS,
) -> tuple[DraftTrainer, MedusaStudent]:
    """A trainer and the fresh heads that it trains; raises as `DraftTrainer`."""
    student = MedusaStudent(target.head_weight.shape[1], num_heads, num_layers)
    return DraftTrainer(target, student, counts, settings), student


def main() -> None:
    parser = draft_parser(__doc__, minutes=25)
    parser.add_argument("--num-heads", type=int, default=NUM_HEADS)
    parser.add_argument("--num-layers", type=int, default=NUM_LAYERS, help="ResBlocks of every head")
    args = parser.parse_args()
    target, corpus = read_inputs(args)
    counts = corpus.counts(target.vocab_size)
    trainer, student = medusa_trainer(target, counts, settings_of(args), args.num_heads, args.num_layers)
    run_training(trainer, corpus, args.out, args.minutes, args.tokens_per_step, args.max_steps)
    save_drafter(student.drafter(target), args.out / "draft", target=target)


if __name__ == "__main__":
    main()
