"""A few steps of a tiny target: it learns, and a restart changes nothing."""

from __future__ import annotations

import argparse
import copy
import math

import torch

from nanospec.training.train_target import TargetTrainer, build_body, target_config

VOCAB, SEQ_LEN = 300, 16
# bf16 keeps 8 significant bits of a cosine or sine.
BF16_ATOL = 2**-8


def trainer() -> TargetTrainer:
    args = argparse.Namespace(
        seed=0, num_drawn=100, matrix_lr=0.02, vector_lr=0.003, row_lr=0.004, weight_decay=0.01, compile=False
    )
    return TargetTrainer(target_config(VOCAB, 128, 2, 64), torch.arange(VOCAB).float(), args)


def batch() -> torch.Tensor:
    return torch.randint(VOCAB, (4 * SEQ_LEN + 1,), generator=torch.Generator().manual_seed(3))


def test_the_loss_is_finite_and_falls_on_a_repeated_batch() -> None:
    run = trainer()
    losses = [run.step(batch(), SEQ_LEN, 1.0) for _ in range(4)]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[3] < losses[0]


def test_a_restored_run_continues_alike() -> None:
    run = trainer()
    run.step(batch(), SEQ_LEN, 1.0)
    saved = copy.deepcopy(run.state())
    again = trainer()
    again.load_state(saved)
    assert again.step(batch(), SEQ_LEN, 1.0) == run.step(batch(), SEQ_LEN, 1.0)
    assert torch.equal(again.rows.table, run.rows.table)


def test_rows_outside_the_drawn_classes_do_not_move() -> None:
    run = trainer()
    before = run.rows.table.clone()
    run.step(batch(), SEQ_LEN, 1.0)
    moved = run.rows.num_updates > 0
    assert 0 < moved.sum() < VOCAB
    assert torch.equal(run.rows.table[~moved], before[~moved])


def test_rotary_angles_are_not_rounded_with_the_weights() -> None:
    run = trainer()
    positions = torch.arange(200)[None]
    tables = [body.rotary_emb(torch.zeros(1), positions) for body in (run.body, build_body(run.config))]
    for table, exact in zip(*tables, strict=True):
        torch.testing.assert_close(table, exact, rtol=0, atol=BF16_ATOL)
