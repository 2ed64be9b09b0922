"""Products with the weight as the left operand, as on a CPU with AMX, against x · weightᵀ."""

from __future__ import annotations

import copy
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nanospec.gathered_head import GatheredHead
from nanospec.ops import weight_first
from nanospec.ops.gathered_linear import rows_linear
from nanospec.ops.weight_first import (
    MOST_TOKENS,
    WeightFirstLinear,
    is_weight_first,
    product_columns,
    use_weight_first,
)
from nanospec.records import DraftVocab

# A result of bfloat16 is rounded to 8 bits, and so is the one that it is compared with; both are near 3 at most here.
RTOL, ATOL = 2**-6, 2**-6
# The order is right without AMX and for small weights, only slow.
WITH_AMX = patch.multiple(weight_first, HAS_AMX=True, LEAST_WEIGHTS=1)


def draw_bf16(*shape: int, seed: int = 0) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / shape[-1] ** 0.5).bfloat16()


@given(
    num_tokens=st.sampled_from((0, 1, 2, 3, 17, MOST_TOKENS, MOST_TOKENS + 1)),
    num_inputs=st.sampled_from((1, 7, 64, 96)),
    num_outputs=st.sampled_from((1, 5, 64, 131)),
    has_bias=st.booleans(),
    as_it_lies=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=80)
def test_a_layer_gives_what_a_plain_one_gives(num_tokens, num_inputs, num_outputs, has_bias, as_it_lies, seed) -> None:
    layer = WeightFirstLinear(num_inputs, num_outputs, has_bias, as_it_lies).bfloat16()
    layer.weight.data = draw_bf16(num_outputs, num_inputs, seed=seed)
    hidden = draw_bf16(1, num_tokens, num_inputs, seed=seed + 1) * num_inputs**0.5
    with WITH_AMX:
        output = layer(hidden)
    assert output.shape == (1, num_tokens, num_outputs)
    assert output.dtype == torch.bfloat16
    assert as_it_lies or output.is_contiguous()
    expected = F.linear(hidden.double(), layer.weight.double(), layer.bias.double() if has_bias else None)
    torch.testing.assert_close(output.double(), expected, rtol=RTOL, atol=ATOL)


def test_the_weight_comes_first_for_few_tokens_of_bfloat16_on_a_cpu_with_amx() -> None:
    weight, hidden = draw_bf16(5, 96), draw_bf16(3, 96)
    with WITH_AMX:
        assert is_weight_first(hidden, weight)
        assert is_weight_first(hidden[:1], weight, is_transposed=True)
        assert not is_weight_first(draw_bf16(5, 96), weight, is_transposed=True)  # 24 inputs a token pay for its copy
        assert not is_weight_first(draw_bf16(MOST_TOKENS + 1, 96), weight)
        assert not is_weight_first(hidden[:0], weight)
        assert not is_weight_first(hidden.float(), weight.float())
        assert not is_weight_first(hidden.to("meta"), weight.to("meta"))
        with patch.object(weight_first, "LEAST_WEIGHTS", weight.numel() + 1):
            assert not is_weight_first(hidden, weight)
    with patch.object(weight_first, "HAS_AMX", False):
        assert not is_weight_first(hidden, weight)


@pytest.mark.parametrize("num_tokens", [1, 2, 9])
def test_product_columns_is_the_product(num_tokens: int) -> None:
    hidden, weight = torch.randn(num_tokens, 7, dtype=torch.float64), torch.randn(11, 7, dtype=torch.float64)
    columns = product_columns(hidden, weight)
    assert columns.shape == (11, num_tokens)
    torch.testing.assert_close(columns, weight @ hidden.T, rtol=0, atol=1e-12)  # only the order of summation differs


def test_a_layer_learns_as_a_plain_one() -> None:
    layer, hidden = WeightFirstLinear(96, 8).bfloat16(), draw_bf16(3, 96)
    plain = nn.Linear(96, 8).bfloat16()
    plain.load_state_dict(layer.state_dict())
    with WITH_AMX:
        layer(hidden).square().sum().backward()
    plain(hidden).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad, rtol=RTOL, atol=ATOL)
    torch.testing.assert_close(layer.bias.grad, plain.bias.grad, rtol=RTOL, atol=ATOL)


@given(
    num_tokens=st.integers(1, 9), count=st.integers(0, 37), has_bias=st.booleans(),
    seed=st.integers(0, 2**16),
)  # fmt: skip
@settings(max_examples=40)
def test_a_packed_head_gives_what_the_plain_order_gives(num_tokens, count, has_bias, seed) -> None:
    weight, hidden = draw_bf16(50, 64, seed=seed), draw_bf16(1, num_tokens, 64, seed=seed + 1) * 8
    bias = draw_bf16(50, seed=seed + 2) if has_bias else None
    ids = torch.randperm(50, generator=torch.Generator().manual_seed(seed))[None, :37]
    rows = weight[ids].clone()
    rows[:, count:] = torch.nan  # what was never written must not show
    vocab = DraftVocab(ids, torch.tensor([count], dtype=torch.int32), rows)
    with WITH_AMX:
        logits = GatheredHead(weight, bias)(hidden, vocab)
    assert num_tokens == 1 or logits.stride(1) == 1  # left column by column
    expected = F.linear(hidden.double(), weight[ids[0]].double(), None if bias is None else bias[ids[0]].double())
    assert torch.equal(logits[..., count:], torch.full((1, num_tokens, 37 - count), -torch.inf).bfloat16())
    torch.testing.assert_close(logits[..., :count].double(), expected[..., :count], rtol=RTOL, atol=ATOL)


def test_rows_of_several_sequences_keep_their_order() -> None:
    rows, hidden = draw_bf16(2, 5, 64), draw_bf16(2, 3, 64)
    with WITH_AMX:
        logits = rows_linear(hidden, rows)
    torch.testing.assert_close(logits.double(), hidden.double() @ rows.double().mT, rtol=RTOL, atol=ATOL)


class Gated(nn.Module):
    """A gated layer as transformers' models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(96, 128, bias=False), nn.Linear(96, 128, bias=False)
        self.down_proj = nn.Linear(128, 96)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


def test_layers_of_a_model_keep_their_weights_names_and_results() -> None:
    model, hidden = Gated().bfloat16().requires_grad_(False), draw_bf16(1, 3, 96)
    weights, expected = dict(model.state_dict()), model(hidden)
    assert use_weight_first(model) == 3
    assert use_weight_first(model) == 0  # done already
    assert (model.gate_proj.as_it_lies, model.up_proj.as_it_lies, model.down_proj.as_it_lies) == (True, True, False)
    assert all(tensor.data_ptr() == weights[name].data_ptr() for name, tensor in model.state_dict().items())
    with WITH_AMX:
        torch.testing.assert_close(model(hidden), expected, rtol=RTOL, atol=ATOL)
        assert torch.equal(copy.deepcopy(model)(hidden), model(hidden))


def test_layers_of_other_kinds_stay_as_they_are() -> None:
    class Own(nn.Linear):
        pass

    model = nn.Sequential(Own(4, 4), nn.Conv1d(4, 4, 1))
    assert use_weight_first(model) == 0
    assert type(model[0]) is Own


def test_a_weight_of_another_kind_of_tensor_has_its_own_product() -> None:
    class Quantised(torch.Tensor):
        pass

    with WITH_AMX:
        assert not is_weight_first(draw_bf16(3, 96), draw_bf16(5, 96).as_subclass(Quantised))


@pytest.mark.parametrize("num_tokens", [1, 4])
def test_a_compiled_layer_gives_what_it_gives_eagerly(num_tokens: int) -> None:
    model, hidden = Gated().bfloat16().requires_grad_(False), draw_bf16(1, num_tokens, 96)
    use_weight_first(model)
    with WITH_AMX:
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(hidden), model(hidden))
