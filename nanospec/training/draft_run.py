"""What the training commands of all drafters share: options, and the run from corpus to trained weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from nanospec.checkpoints.target import load_target
from nanospec.checkpoints.tokenizer import read_tokenizer
from nanospec.target import Target
from nanospec.training.corpus import TokenizedCorpus, packed_batches, tokenize_corpus
from nanospec.training.draft_trainer import DraftTrainer, DraftTrainingSettings
from nanospec.training.run_log import TimedRun, learning_rate_factor

BATCH_SEED = 1000  # batches of drafters differ from the target's


def draft_parser(description: str | None, minutes: float) -> argparse.ArgumentParser:
    """The options of every command that trains a drafter."""
    defaults = DraftTrainingSettings()
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True, help="directory of the target, its tokenizer included")
    parser.add_argument("--out", type=Path, required=True, help="draft/ goes here, beside log and checkpoint")
    parser.add_argument("--minutes", type=float, default=minutes)
    parser.add_argument("--tokens-per-step", type=int, default=8192)
    parser.add_argument("--seq-len", type=int, default=defaults.seq_len)
    parser.add_argument(
        "--num-drawn", type=int, default=defaults.num_drawn, help="expected number of classes beside the batch's own"
    )
    parser.add_argument("--matrix-lr", type=float, default=defaults.matrix_lr)
    parser.add_argument("--vector-lr", type=float, default=defaults.vector_lr)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=defaults.compile)
    parser.add_argument("--max-steps", type=int, default=None, help="the run ends there if that comes earlier")
    return parser


def settings_of(args: argparse.Namespace) -> DraftTrainingSettings:
    return DraftTrainingSettings(
        args.seq_len, args.num_drawn, args.matrix_lr, args.vector_lr, args.seed, args.compile
    )  # fmt: skip


def read_inputs(args: argparse.Namespace) -> tuple[Target, TokenizedCorpus]:
    """The target in bf16 on the CPU, its weights frozen, and the corpus in its tokens."""
    target, _ = load_target(args.target, dtype="bfloat16", device="cpu")
    target.requires_grad_(False)
    tokenizer = read_tokenizer(args.target / "tokenizer.json.xz")
    return target, tokenize_corpus(args.corpus, tokenizer, args.out.parent / "tokens")


def run_training(
    trainer: DraftTrainer,
    corpus: TokenizedCorpus,
    out: Path,
    minutes: float,
    tokens_per_step: int,
    max_steps: int | None = None,
) -> TimedRun:
    """Trains until `minutes` are spent, counted over restarts, or `max_steps` are taken; resumes from `out`."""
    run = TimedRun(out, minutes, trainer.state, trainer.load_state)
    batches = packed_batches(corpus, tokens_per_step, trainer.settings.seed + BATCH_SEED + run.num_steps)

    def step(progress: float) -> tuple[float, int]:
        return trainer.step(next(batches), learning_rate_factor(progress)), tokens_per_step

    run.run(step, max_steps)
    return run
