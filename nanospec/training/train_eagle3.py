"""Trains an EAGLE-3 drafter for a target by distillation, unrolled over its own states (see `unrolling`).

    python -m nanospec.training.train_eagle3 --corpus train.jsonl.xz --target DIR --out runs/eagle3 --minutes 25

It reads a low, a middle and a high layer of the target and shares its embedding and head, so that no head has to be
trained; its file then holds none. `nanospec trim` writes some rows into it, with a map d2t as in published drafts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nanospec.checkpoints.save import save_drafter
from nanospec.drafters.eagle3 import Eagle3Drafter, Eagle3Wiring, default_feature_layers
from nanospec.gathered_head import GatheredHead
from nanospec.target import Target, check_feature_layers
from nanospec.training.draft_run import draft_parser, read_inputs, run_training, settings_of
from nanospec.training.draft_trainer import DraftTrainer, DraftTrainingSettings, Lesson, Reading
from nanospec.training.train_eagle import eagle_shape, start_silent
from nanospec.training.unrolling import unroll

UNROLL_STEPS = 4


class Eagle3Student:
    """An EAGLE-3 drafter in training: no regression on features, its states need not be the target's."""

    feature_weight = 0.0

    def __init__(self, drafter: Eagle3Drafter, unroll_steps: int) -> None:
        self.module, self.unroll_steps = drafter, unroll_steps
        self.feature_layers: tuple[int, ...] | None = drafter.feature_layers

    def lesson(self, token_ids: Tensor, reading: Reading, generator: torch.Generator) -> Lesson:
        """Row t: from the features of position t and token t + 1 what the target's head reads at position t + 1."""
        states = self.module.fuse(reading.features[:, :-1])
        predicted = unroll(self.module, token_ids[:, 1:], states, self.unroll_steps)
        return Lesson([self.module.before_head(state) for state in predicted], reading.last_states[:, 1:])


def eagle3_trainer(
    target: Target,
    counts: Tensor,
    settings: DraftTrainingSettings,
    unroll_steps: int = UNROLL_STEPS,
    feature_layers: Sequence[int] | None = None,
) -> tuple[DraftTrainer, Eagle3Drafter]:
    """A trainer and the fresh drafter that it trains; raises as `DraftTrainer` and `new_drafter`."""
    torch.manual_seed(settings.seed)
    drafter = new_drafter(target, feature_layers)
    return DraftTrainer(target, Eagle3Student(drafter, unroll_steps), counts, settings), drafter


def new_drafter(target: Target, feature_layers: Sequence[int] | None = None) -> Eagle3Drafter:
    """A fresh drafter whose state is the last of its features; before the head stands the target's final norm.

    feature_layers: whose inputs it reads, as in `Target`; None: those that EAGLE-3 was trained with.

    Raises ValueError for layers that coincide, as those of EAGLE-3 do in a target of fewer than seven, or that the
    target lacks.
    """
    width, num_layers = target.head_weight.shape[1], target.config.num_hidden_layers
    layers = default_feature_layers(num_layers) if feature_layers is None else tuple(feature_layers)
    check_feature_layers(layers, num_layers)
    shape = eagle_shape(target, input_norm=True, two_inputs=True, fc_inputs=len(layers) * width)
    head = GatheredHead(target.head_weight, None)
    drafter = Eagle3Drafter(shape, Eagle3Wiring(layers, width), target.config, target.embed_tokens, head)
    start_silent(drafter)
    with torch.no_grad():
        drafter.fc.weight.zero_()
        drafter.fc.weight[:, -width:] = torch.eye(width)
        # Of ones the norm makes its own gains, in whatever form it stores them.
        drafter.norm.copy_(target.model.get_decoder().norm(torch.ones(width, dtype=target.dtype, device=target.device)))
    return drafter


def main() -> None:
    parser = draft_parser(__doc__, minutes=25)
    parser.add_argument("--unroll-steps", type=int, default=UNROLL_STEPS)
    parser.add_argument(
        "--feature-layers", type=int, nargs="+", default=None, help="layers whose inputs are read; default: EAGLE-3's"
    )
    args = parser.parse_args()
    target, corpus = read_inputs(args)
    trainer, drafter = eagle3_trainer(
        target, corpus.counts(target.vocab_size), settings_of(args), args.unroll_steps, args.feature_layers
    )
    run_training(trainer, corpus, args.out, args.minutes, args.tokens_per_step, args.max_steps)
    save_drafter(drafter, args.out / "draft", target=target)


if __name__ == "__main__":
    main()
