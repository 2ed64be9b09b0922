"""Top-k that breaks ties by id, against a stable sort, and by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from nanospec.ops.smallest_id_topk import smallest_id_topk
from nanospec.ops.smallest_id_topk_reference import smallest_id_topk_reference

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INF, NAN = float("inf"), float("nan")
SPECIAL = (-INF, -0.0, 0.0, INF, NAN, -NAN, 1e-7, -1e-7, 6e4, -6e4)


def bits(values: torch.Tensor) -> torch.Tensor:
    return values.contiguous().view(torch.uint8)


def check_against_sort(values: torch.Tensor, ids: torch.Tensor, k: int, topk=smallest_id_topk) -> None:
    got_values, got_ids = topk(values, ids, k)
    expected_values, expected_ids = smallest_id_topk_reference(values, ids, k)
    assert torch.equal(got_ids, expected_ids)
    assert torch.equal(bits(got_values), bits(expected_values))  # also the sign of zeros and the payload of NaNs


def make_values(shape: tuple[int, ...], num_levels: int, dtype: torch.dtype, draw: torch.Generator) -> torch.Tensor:
    """Small integers of both signs, so many ties, with some special values among them."""
    values = torch.randint(-num_levels, num_levels + 1, shape, generator=draw).to(dtype)
    special = torch.tensor(SPECIAL).to(dtype)[torch.randint(len(SPECIAL), shape, generator=draw)]
    return torch.where(torch.rand(shape, generator=draw) < 0.2, special, values)


def make_ids(shape: tuple[int, ...], draw: torch.Generator) -> torch.Tensor:
    """Distinct ids in any order, the smallest and the largest there are among them."""
    ids = torch.rand(shape, generator=draw).argsort(-1) * 1000
    return torch.where(ids == (shape[-1] - 1) * 1000, 2**31 - 1, ids)


@given(
    leading=st.sampled_from(((), (0,), (1,), (3,), (2, 3))),
    num_columns=st.integers(1, 40),
    num_padding=st.integers(0, 5),
    has_own_ids=st.booleans(),
    k=st.integers(1, 45),
    num_levels=st.sampled_from((0, 1, 3, 10**4)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=100)
def test_matches_sort(leading, num_columns, num_padding, has_own_ids, k, num_levels, dtype, seed) -> None:
    draw = torch.Generator().manual_seed(seed)
    values = make_values((*leading, num_columns), num_levels, dtype, draw)
    ids = make_ids(values.shape if has_own_ids else (num_columns,), draw)
    # Padding: the first id again and again, at -inf.
    values = torch.cat((values, values.new_full((*leading, num_padding), -INF)), -1)
    ids = torch.cat((ids, ids[..., :1].expand(*ids.shape[:-1], num_padding)), -1)
    check_against_sort(values, ids, min(k, num_columns + num_padding))


@pytest.mark.parametrize("dtype", DTYPES)
def test_worked_example(dtype: torch.dtype) -> None:
    values, ids = torch.tensor([-1, 3, 0.0, 3, -0.0, NAN, -INF], dtype=dtype), torch.tensor([5, 9, 8, 2, 7, 6, 5])
    best, best_ids = smallest_id_topk(values, ids, 6)
    assert best[0].isnan()
    assert best[1:].tolist() == [3, 3, 0, 0, -1]
    assert best_ids.tolist() == [6, 2, 9, 7, 8, 5]
    assert best[3:5].signbit().tolist() == [True, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_but_minus_infinity_still_gives_ids_in_order(dtype: torch.dtype) -> None:
    values = torch.full((2, 5), -INF, dtype=dtype)
    assert smallest_id_topk(values, torch.tensor([4, 0, 3, 1, 2]), 3)[1].tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_float_is_ranked_as_sorting_ranks_it(dtype: torch.dtype) -> None:
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    numbers = numbers.view(dtype) if dtype.itemsize == 2 else (numbers.int() << 16).view(torch.float32).to(dtype)
    check_against_sort(numbers, make_ids(tuple(numbers.shape), torch.Generator().manual_seed(0)), numbers.shape[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_goes_to_what_was_chosen(dtype: torch.dtype) -> None:
    values = torch.tensor([[1.0, 3, 3, 2]], dtype=dtype, requires_grad=True)
    smallest_id_topk(values, torch.tensor([5, 9, 2, 1]), 2)[0].backward(torch.tensor([[10.0, 20.0]], dtype=dtype))
    assert values.grad.tolist() == [[0, 20, 10, 0]]


def test_compiles_with_any_number_of_rows() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(smallest_id_topk, backend=counter, fullgraph=True, dynamic=True)
    draw = torch.Generator().manual_seed(0)
    ids = make_ids((70,), draw)
    for num_rows in (3, 5):
        values = make_values((num_rows, 70), 3, torch.bfloat16, draw)
        check_against_sort(values, ids, 60, compiled)
    assert counter.frame_count == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_traces_a_single_row(dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(smallest_id_topk, backend="aot_eager", fullgraph=True)
    draw = torch.Generator().manual_seed(1)
    check_against_sort(make_values((30,), 2, dtype, draw), make_ids((30,), draw), 30, compiled)


VALUES, IDS = torch.zeros(2, 5), torch.arange(5)


@pytest.mark.parametrize(
    ("values", "ids", "k", "error", "message"),
    [
        (VALUES, IDS, 0, ValueError, "k must be between 1 and the number of columns 5, got 0"),
        (VALUES, IDS, 6, ValueError, "k must be between 1 and the number of columns 5, got 6"),
        (VALUES, IDS[:4], 1, ValueError, r"ids must broadcast to values \[.., K\], got \(4,\) and \(2, 5\)"),
        (VALUES, IDS.expand(3, 5), 1, ValueError, "ids must broadcast"),
        (VALUES, IDS.expand(1, 2, 5), 1, ValueError, "ids must broadcast"),
        (VALUES[0, 0], IDS[0], 1, ValueError, "ids must broadcast"),
        (VALUES, IDS.int(), 1, TypeError, "ids must be int64, got torch.int32"),
        (VALUES.long(), IDS, 1, TypeError, "values must be float16, .* got torch.int64"),
    ],
)
def test_what_does_not_fit_is_refused(values, ids, k, error, message) -> None:
    with pytest.raises(error, match=message):
        smallest_id_topk(values, ids, k)
