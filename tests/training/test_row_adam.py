"""Adam over some rows against torch's Adam over all of them."""

from __future__ import annotations

import torch

from nanospec.training.row_adam import RowAdam

LR = 0.05
# float32 steps of size LR; both sides compute the same formula in another order.
ATOL = 1e-6


def test_with_every_row_used_it_is_torchs_adam() -> None:
    torch.manual_seed(0)
    table = torch.randn(11, 4)
    dense = torch.nn.Parameter(table.clone())
    optimizer, rows = torch.optim.Adam([dense], lr=LR, betas=(0.9, 0.99), eps=1e-10), RowAdam(table)
    for _ in range(6):
        dense.grad = torch.randn(11, 4)
        order = torch.randperm(11)
        rows.step(order, dense.grad[order], LR)
        optimizer.step()
    torch.testing.assert_close(rows.table, dense.detach(), rtol=0, atol=ATOL)


def test_a_row_follows_its_own_history_and_rests_stay_bit_identical() -> None:
    torch.manual_seed(1)
    table = torch.randn(5, 3)
    before = table.clone()
    rows = RowAdam(table)
    history: list[list[torch.Tensor]] = [[] for _ in range(5)]
    for used in ([0, 2], [2], [4, 2, 0]):
        grad = torch.randn(len(used), 3)
        resting = [row for row in range(5) if row not in used]
        held = [getattr(rows, name)[resting].clone() for name in rows.state_dict()]
        rows.step(torch.tensor(used), grad, LR)
        for row, row_grad in zip(used, grad, strict=True):
            history[row].append(row_grad)
        now = [getattr(rows, name)[resting] for name in rows.state_dict()]
        assert all(torch.equal(a, b) for a, b in zip(held, now, strict=True))
    for row, grads in enumerate(history):
        alone = torch.nn.Parameter(before[row].clone())
        optimizer = torch.optim.Adam([alone], lr=LR, betas=(0.9, 0.99), eps=1e-10)
        for alone.grad in grads:
            optimizer.step()
        torch.testing.assert_close(rows.table[row], alone.detach(), rtol=0, atol=ATOL)


def test_a_restored_state_continues_alike() -> None:
    torch.manual_seed(2)
    rows = RowAdam(torch.randn(4, 3))
    ids, grad = torch.tensor([1, 3]), torch.randn(2, 3)
    rows.step(ids, grad, LR)
    again = RowAdam(torch.zeros(4, 3))
    again.load_state_dict({name: value.clone() for name, value in rows.state_dict().items()})
    for optimizer in (rows, again):
        optimizer.step(ids, 2 * grad, LR)
    assert torch.equal(rows.table, again.table)
