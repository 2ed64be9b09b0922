"""bf16 modules trained through float32 copies: Muon on matrices, Adam on vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MasterWeights:
    """Optimizer over the named live (low-precision) parameters of a module.

    Muon (Jordan et al. 2024) steps the matrices, Adam everything else; `step` leaves the rounded masters in the module.
    """

    def __init__(self, live: dict[str, nn.Parameter], matrix_lr: float, vector_lr: float, weight_decay: float) -> None:
        self.live, self.matrix_lr, self.vector_lr = live, matrix_lr, vector_lr
        self.masters = {name: parameter.detach().clone().float() for name, parameter in live.items()}
        matrices = [master for master in self.masters.values() if master.ndim == 2]
        self.vectors = [master for master in self.masters.values() if master.ndim == 1]
        self.muon = torch.optim.Muon(matrices, lr=matrix_lr, momentum=0.95, weight_decay=weight_decay)
        self.adam = torch.optim.Adam(self.vectors, lr=vector_lr, betas=(0.9, 0.95))

    @torch.no_grad()
    def step(self, lr_factor: float) -> None:
        for name, master in self.masters.items():
            gradient = self.live[name].grad
            assert gradient is not None, f"{name} got no gradient"
            master.grad = gradient.float()
        nn.utils.clip_grad_norm_(self.vectors, 1.0)
        for optimizer, lr in ((self.muon, self.matrix_lr), (self.adam, self.vector_lr)):
            for group in optimizer.param_groups:
                group["lr"] = lr * lr_factor
            optimizer.step()
        for name, master in self.masters.items():
            self.live[name].copy_(master)
            self.live[name].grad = None

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {"masters": self.masters, "muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        for name, value in state["masters"].items():
            self.masters[name].copy_(value)
            self.live[name].data.copy_(value)
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
