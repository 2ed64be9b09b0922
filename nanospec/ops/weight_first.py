"""The order of a product of few tokens on a CPU: weight · xᵀ where that is faster than x · weightᵀ.

A bfloat16 product by Intel's AMX brings its right operand into another layout on every call. As the left operand a
large weight is read once, as it lies, and the few tokens are what is rearranged. Every output is the same sum of the
same products, rounded once; in which order it is summed is the library's choice either way.
"""

from __future__ import annotations

import os
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# What the processor has, unless its use is forbidden to oneDNN, which multiplies.
HAS_AMX = torch.cpu._is_amx_tile_supported() and (
    "AMX" in os.environ.get("ONEDNN_MAX_CPU_ISA", "AMX") or os.environ["ONEDNN_MAX_CPU_ISA"] in ("ALL", "DEFAULT")
)
LEAST_WEIGHTS = 2**20  # fewer are multiplied in less time than the calls beside them take
MOST_TOKENS = 128  # beyond, arithmetic counts, and x · weightᵀ catches up
INPUTS_PER_TOKEN = 24  # fewer, and what the order saves goes into transposing the result
COLUMN_TOKENS = 64  # that a search by columns looks through side by side
MOST_EMPTY = 16  # of them; more cost more than the search saves
# Layers of transformers' models whose results are only taken element by element.
ELEMENTWISE = ("gate_proj", "up_proj", "gate_up_proj")


def reads_weight_first(x: Tensor) -> bool:
    """Whether the order can matter for x: bfloat16 on a CPU with AMX."""
    return HAS_AMX and x.device.type == "cpu" and x.dtype == torch.bfloat16


def is_weight_first(x: Tensor, weight: Tensor, is_transposed: bool = False) -> bool:
    """Whether weight [N, D] · xᵀ is the faster order for x [.., D].

    is_transposed: also where the result is then brought into the layout of x · weightᵀ.
    """
    if weight.numel() < LEAST_WEIGHTS or not reads_weight_first(x):
        return False
    num_inputs = weight.shape[1]
    most = min(MOST_TOKENS, num_inputs // INPUTS_PER_TOKEN) if is_transposed else MOST_TOKENS
    # Other kinds of tensors, quantised or spread over processes, have products of their own.
    is_plain = type(weight) in (Tensor, nn.Parameter) and weight.dtype == x.dtype
    return is_plain and 0 < x.numel() <= most * num_inputs


def product_columns(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [n, D], weight [N, D], bias [N] -> weight · xᵀ + bias [N, n], contiguous."""
    if x.shape[0] == 1:  # a product with a single column takes as long as x · weightᵀ, with two it does not
        return product_columns(x.expand(2, -1), weight, bias)[:, :1].contiguous()
    return torch.mm(weight, x.t()) if bias is None else torch.addmm(bias[:, None], weight, x.t())


def weight_first_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, as_it_lies: bool = False) -> Tensor:
    """As F.linear, x [.., D] · weight [N, D]ᵀ + bias [N], in the faster order for few tokens.

    as_it_lies: the result may be laid out output by output, for consumers that work element by element.
    """
    if not is_weight_first(x, weight, is_transposed=not as_it_lies):
        return F.linear(x, weight, bias)
    output = product_columns(x.reshape(-1, x.shape[-1]), weight, bias).t()
    return (output if as_it_lies else output.contiguous()).view(*x.shape[:-1], weight.shape[0])


def columns(x: Tensor, layer: nn.Module) -> Tensor | None:
    """layer(x) for x [n, D], followed by rows up to a multiple of 64, all laid out column by column: [n', N].

    None where layer(x) is the faster way, or does more than multiply. Wide outputs are faster to search than to bring
    into the layout of x · weightᵀ.
    """
    num_empty = -x.shape[0] % COLUMN_TOKENS
    if type(layer) is not WeightFirstLinear or layer._forward_hooks or layer._forward_pre_hooks:
        return None
    if torch.compiler.is_compiling() or num_empty > MOST_EMPTY or not is_weight_first(x, layer.weight):
        return None
    return weight_first_linear(F.pad(x, (0, 0, 0, num_empty)), layer.weight, layer.bias, as_it_lies=True)


class WeightFirstLinear(nn.Linear):
    """nn.Linear as `weight_first_linear`; in_graphs: also where torch.compile traces it."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, as_it_lies: bool = False) -> None:
        super().__init__(in_features, out_features, bias)
        self.as_it_lies, self.in_graphs = as_it_lies, True

    def forward(self, input: Tensor) -> Tensor:
        if not self.in_graphs and torch.compiler.is_compiling():
            return F.linear(input, self.weight, self.bias)
        return weight_first_linear(input, self.weight, self.bias, self.as_it_lies)


def use_weight_first(model: nn.Module) -> int:
    """Make every plain nn.Linear inside `model` a `WeightFirstLinear`, in place; weights, names and hooks stay.

    Returns how many there were. `load_target` does this to the models that it loads itself, never to one that it is
    given. In graphs of torch.compile they remain F.linear, which passes over graphs know. What asks for layers whose
    type is nn.Linear and no other, such as torch.ao.quantization, no longer finds them.
    """
    layers = [(name, module) for name, module in model.named_modules() if type(module) is nn.Linear]
    for name, layer in layers:
        layer.__class__ = WeightFirstLinear
        first = cast(WeightFirstLinear, layer)
        first.as_it_lies, first.in_graphs = name.rpartition(".")[2] in ELEMENTWISE, False
    return len(layers)
