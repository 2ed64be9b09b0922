"""Two faults of vLLM's EAGLE-1 loader that change what is drafted, handled while weights are read."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

FC_BIAS = "fc.bias"
log = logging.getLogger("vllm.nanospec")


class BiasedLinear(nn.Module):
    """A linear layer of vLLM's that was built without a bias, and the bias [D] that its checkpoint holds."""

    def __init__(self, linear: nn.Module, bias: Tensor) -> None:
        super().__init__()
        self.linear = linear
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear(hidden) + self.bias


def clear_biases(model: nn.Module) -> None:
    """Make every bias 0 before weights are loaded.

    vLLM reads `"bias": true` of an EAGLE-1 config, which means fc's, as attention's. It makes biases that no tensor of
    the file fills: whatever was in memory is added, NaN at worst, and the draft says token 0 from then on.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()


class FcBias:
    """Takes fc's bias out of a stream of weights, where vLLM would drop it unseen, to be added by `add_to`."""

    def __init__(self) -> None:
        self.bias: Tensor | None = None

    def taken_from(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, weight in weights:
            if name == FC_BIAS or name.endswith("." + FC_BIAS):
                self.bias = weight
            else:
                yield name, weight

    def add_to(self, inner_model: Any) -> bool:
        """Whether there was one, now part of `inner_model.fc`. A quantized fc is left as vLLM makes it, with a warning.

        Raises ValueError for a bias of another shape.
        """
        if self.bias is None:
            return False
        if isinstance(inner_model.fc, BiasedLinear):  # loaded anew
            inner_model.fc.bias.data.copy_(self.bias)
            return True
        weight = getattr(inner_model.fc, "weight", None)
        if weight is None or not weight.is_floating_point():
            log.warning("nanospec: fc.bias of the draft is left out, as its fc is quantized")
            return False
        if self.bias.shape != weight.shape[:1]:
            raise ValueError(f"draft fc.bias must be [{weight.shape[0]}], got shape {tuple(self.bias.shape)}")
        inner_model.fc = BiasedLinear(inner_model.fc, self.bias.to(weight.device, weight.dtype))
        return True
