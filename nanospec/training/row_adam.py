"""Adam that touches only the rows used in a step: for embedding tables far taller than a batch."""

from __future__ import annotations

import torch
from torch import Tensor


class RowAdam:
    """Lazy Adam over the rows of one float32 table [V, D]; moments of absent rows stay as they are."""

    def __init__(self, table: Tensor, betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-10) -> None:
        self.table, self.betas, self.eps = table, betas, eps
        self.mean = torch.zeros_like(table)
        self.square = torch.zeros_like(table)
        self.num_updates = torch.zeros(table.shape[0], dtype=torch.float32)

    @torch.no_grad()
    def step(self, row_ids: Tensor, grad: Tensor, lr: float) -> None:
        """row_ids int64 [S] distinct, grad [S, D]."""
        grad = grad.float()
        beta1, beta2 = self.betas
        count = self.num_updates[row_ids] + 1
        mean = self.mean[row_ids].lerp_(grad, 1 - beta1)
        square = self.square[row_ids].lerp_(grad.square(), 1 - beta2)
        self.num_updates[row_ids], self.mean[row_ids], self.square[row_ids] = count, mean, square
        mean_hat = mean / (1 - beta1**count)[:, None]
        square_hat = square / (1 - beta2**count)[:, None]
        self.table.index_add_(0, row_ids, mean_hat / (square_hat.sqrt() + self.eps), alpha=-lr)

    def state_dict(self) -> dict[str, Tensor]:
        return {"table": self.table, "mean": self.mean, "square": self.square, "num_updates": self.num_updates}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            getattr(self, name).copy_(value)
