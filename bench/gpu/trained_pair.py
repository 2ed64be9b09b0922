"""A target over the demonstration tokenizer's ids and its EAGLE drafter, trained on one device within a time budget.

The trainers are those of `nanospec.training`; what they make without naming a device is made here under
`torch.device`, and the target's state, which they make on the CPU, is moved.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nanospec.drafters.eagle import EagleDrafter
from nanospec.target import Target
from nanospec.training.corpus import TokenizedCorpus, packed_batches
from nanospec.training.draft_trainer import DraftTrainingSettings
from nanospec.training.export_target import export_tensors
from nanospec.training.master_weights import MasterWeights
from nanospec.training.row_adam import RowAdam
from nanospec.training.run_log import learning_rate_factor
from nanospec.training.train_eagle import eagle_trainer, new_drafter
from nanospec.training.train_target import LONG_SHARE, TargetTrainer, target_config

DTYPE = torch.bfloat16
SEED = 0
TARGET_RATES = {"matrix_lr": 0.02, "vector_lr": 0.003, "row_lr": 0.004, "weight_decay": 0.01}
DRAFTER_RATES = {"matrix_lr": 0.01, "vector_lr": 0.003}


@dataclass(frozen=True)
class TrainedSize:
    """num_drawn: classes of the sampled softmax beside the batch's own; the rest as in the trainers' options."""

    hidden_size: int
    num_layers: int
    intermediate_size: int
    tokens_per_step: int
    seq_len: int
    long_seq_len: int
    num_drawn: int
    max_new_tokens: int


TRAINED_SIZES = {
    "full": TrainedSize(1024, 8, 4096, 16_384, 512, 2048, 8192, 256),  # 134M parameters of embeddings, 126M of layers
    "tiny": TrainedSize(128, 1, 128, 256, 64, 64, 128, 5),
}


def train_target(
    corpus: TokenizedCorpus, vocab_size: int, size: TrainedSize, device: torch.device, seconds: float
) -> tuple[Target, dict[str, float]]:
    """The target after `seconds` of training, its embeddings rounded as an export rounds them, and how it went."""
    config = target_config(vocab_size, size.hidden_size, size.num_layers, size.intermediate_size)
    args = Namespace(**TARGET_RATES, num_drawn=size.num_drawn, seed=SEED, compile=False)
    trainer = TargetTrainer(config, corpus.counts(vocab_size), args)
    _move_target_trainer(trainer, args, device)
    batches = packed_batches(corpus, size.tokens_per_step, SEED)

    def step(progress: float) -> float:
        seq_len = size.long_seq_len if progress > 1 - LONG_SHARE else size.seq_len
        return trainer.step(next(batches).to(device), seq_len, learning_rate_factor(progress))

    with torch.device(device):
        figures = _train_for(seconds, step, size.tokens_per_step)
        target = _as_target(trainer, config)
    return target, figures


def train_drafter(
    corpus: TokenizedCorpus, target: Target, size: TrainedSize, seconds: float
) -> tuple[EagleDrafter, dict[str, float]]:
    """The drafter of `target` after `seconds` of distillation, and how it went."""
    device = target.device
    settings = DraftTrainingSettings(size.seq_len, size.num_drawn, **DRAFTER_RATES, seed=SEED, compile=False)
    with torch.device(device):
        trainer, trained = eagle_trainer(target, corpus.counts(target.vocab_size).to(device), settings)
    trainer.generator = torch.Generator(device).manual_seed(SEED)
    batches = packed_batches(corpus, size.tokens_per_step, SEED + 1)

    def step(progress: float) -> float:
        return trainer.step(next(batches).to(device), learning_rate_factor(progress))

    with torch.device(device):
        figures = _train_for(seconds, step, size.tokens_per_step)
    drafter = new_drafter(target)  # a fresh one, whose angles are computed on the CPU, as those of a loaded one
    drafter.load_state_dict(trained.state_dict())
    return drafter.to(device=device, dtype=DTYPE).eval().requires_grad_(False), figures


def split_documents(corpus: TokenizedCorpus, num_held_out: int) -> tuple[TokenizedCorpus, TokenizedCorpus]:
    """(training part, held-out part): documents at random, none in both."""
    order = np.random.default_rng(SEED).permutation(len(corpus.categories))
    return take_documents(corpus, order[num_held_out:]), take_documents(corpus, order[:num_held_out])


def take_documents(corpus: TokenizedCorpus, rows: np.ndarray) -> TokenizedCorpus:
    """The documents `rows`, in that order. Raises ValueError for none."""
    if not len(rows):
        raise ValueError("rows must name at least one document, got none")
    pieces = [corpus.tokens[corpus.starts[row] : corpus.starts[row + 1]] for row in rows]
    starts = np.cumsum([0, *(len(piece) for piece in pieces)])
    response_starts = starts[:-1] + [corpus.prompt_length(row) for row in rows]
    return TokenizedCorpus(np.concatenate(pieces), starts, response_starts, [corpus.categories[row] for row in rows])


def _move_target_trainer(trainer: TargetTrainer, args: Namespace, device: torch.device) -> None:
    """Its optimizers are made anew over the moved weights: before the first step they hold nothing else."""
    trainer.generator = torch.Generator(device).manual_seed(args.seed)
    trainer.body.to(device)
    live = {name: value for name, value in trainer.body.named_parameters() if "embed_tokens" not in name}
    trainer.weights = MasterWeights(live, args.matrix_lr, args.vector_lr, args.weight_decay)
    with torch.device(device):
        trainer.rows = RowAdam(trainer.rows.table.to(device))
    trainer.sampler.inclusion = trainer.sampler.inclusion.to(device)
    trainer.local_pos = trainer.local_pos.to(device)


def _as_target(trainer: TargetTrainer, config: LlamaConfig) -> Target:
    state = {"weights": trainer.weights.state_dict(), "rows": trainer.rows.state_dict()}
    tensors = {name: tensor.to(DTYPE) for name, tensor in export_tensors(state).items()}
    config._attn_implementation = "sdpa"
    model = LlamaForCausalLM(config).to(DTYPE)
    # Angles stay float32, as in a loaded model.
    model.model.rotary_emb.inv_freq = trainer.body.rotary_emb.inv_freq.clone()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], []), f"missing {missing}, unexpected {unexpected}"
    return Target(model.requires_grad_(False))


def _train_for(seconds: float, step: Callable[[float], float], tokens_per_step: int) -> dict[str, float]:
    """Calls step(progress) -> loss until `seconds` are over, at least once."""
    began, num_steps, smooth = time.monotonic(), 0, 0.0
    while num_steps == 0 or time.monotonic() - began < seconds:
        loss = step(min((time.monotonic() - began) / seconds, 1.0))
        num_steps += 1
        smooth = loss if num_steps == 1 else 0.98 * smooth + 0.02 * loss
    spent = time.monotonic() - began
    tokens = num_steps * tokens_per_step
    return {
        "seconds": round(spent, 1),
        "steps": num_steps,
        "tokens": tokens,
        "tokens_per_s": round(tokens / spent),
        "loss_nats": round(smooth, 4),
    }
