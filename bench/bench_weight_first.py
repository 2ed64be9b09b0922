"""Products of few tokens with the matrices of an EAGLE layer, one after the other: x · Wᵀ, and W · xᵀ where it pays."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.shapes import DTYPE, Shape
from nanospec.ops.weight_first import reads_weight_first, weight_first_linear

NUM_TOKENS = (1, 8, 16, 64)
# bf16 results of order 1, each rounded once to 8 significant bits; the order of summation may move the rounding.
TOLERANCE = 2**-6


@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
def test_time_of_the_order_of_products(shape: Shape, num_tokens: int, device: torch.device, compare) -> None:
    torch.manual_seed(0)
    width, cached = shape.num_heads * shape.head_dim, 2 * shape.num_kv_heads * shape.head_dim
    hidden, inner = shape.hidden_size, shape.intermediate_size
    sizes = [(hidden, 2 * hidden), (width + cached, hidden), (hidden, width), (2 * inner, hidden), (hidden, inner)]
    matrices = [torch.randn(*size, dtype=DTYPE, device=device) * size[1] ** -0.5 for size in sizes]
    tokens = [torch.randn(num_tokens, size[1], dtype=DTYPE, device=device) for size in sizes]
    if not reads_weight_first(tokens[0]):
        pytest.skip("there is one order on this machine")
    for x, weight in zip(tokens, matrices, strict=True):
        torch.testing.assert_close(weight_first_linear(x, weight), F.linear(x, weight), rtol=TOLERANCE, atol=TOLERANCE)

    def multiply(as_it_lies: bool) -> list[Tensor]:
        return [
            weight_first_linear(x, weight, as_it_lies=as_it_lies) for x, weight in zip(tokens, matrices, strict=True)
        ]

    compare(
        f"products of a layer, D = {hidden}, {num_tokens} tokens",
        {
            "x first": lambda: [F.linear(x, weight) for x, weight in zip(tokens, matrices, strict=True)],
            "as layers do": lambda: multiply(as_it_lies=False),
            "left as it lies": lambda: multiply(as_it_lies=True),
        },
    )
