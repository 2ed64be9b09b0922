"""The order of a product of few tokens on a CPU: weight · xᵀ where that is faster than x · weightᵀ.

A bfloat16 product by Intel's AMX brings its right operand into another layout on every call. As the left operand a
large weight is read once, as it lies, and the few tokens are what is rearranged. Every output is the same sum of the
same products, rounded once; up to 16 tokens even the order of the sum was the same where it was looked at.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HAS_AMX = torch.cpu._is_amx_tile_supported()
MOST_TOKENS = 128  # beyond, arithmetic counts, and x · weightᵀ catches up
INPUTS_PER_TOKEN = 24  # fewer, and what the order saves goes into transposing the result


def reads_weight_first(x: Tensor) -> bool:
    """Whether the order can matter for x: bfloat16 on a CPU with AMX."""
    return HAS_AMX and x.device.type == "cpu" and x.dtype == torch.bfloat16


def is_weight_first(x: Tensor, weight: Tensor, is_transposed: bool = False) -> bool:
    """Whether weight [N, D] · xᵀ is the faster order for x [.., D].

    is_transposed: also where the result is then brought into the layout of x · weightᵀ.
    """
    num_inputs = weight.shape[1]
    most = min(MOST_TOKENS, num_inputs // INPUTS_PER_TOKEN) if is_transposed else MOST_TOKENS
    return reads_weight_first(x) and weight.dtype == x.dtype and 0 < x.numel() <= most * num_inputs


def product_columns(x: Tensor, weight: Tensor) -> Tensor:
    """x [n, D], weight [N, D] -> weight · xᵀ [N, n], contiguous."""
    if x.shape[0] == 1:  # a product with a single column takes as long as x · weightᵀ, with two it does not
        return torch.mm(weight, x.expand(2, -1).t())[:, :1]
    return torch.mm(weight, x.t())


class WeightFirstLinear(nn.Linear):
    """nn.Linear in the faster order for few tokens.

    as_it_lies: the result may be laid out output by output, for consumers that work element by element.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, as_it_lies: bool = False) -> None:
        super().__init__(in_features, out_features, bias)
        self.as_it_lies = as_it_lies

    def forward(self, input: Tensor) -> Tensor:
        if not is_weight_first(input, self.weight, is_transposed=not self.as_it_lies):
            return F.linear(input, self.weight, self.bias)
        output = product_columns(input.reshape(-1, self.in_features), self.weight).t()
        if self.bias is not None:
            output = output + self.bias
        return (output if self.as_it_lies else output.contiguous()).view(*input.shape[:-1], self.out_features)
