from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanospec.near_tie import MAX_SHIFT_ULPS, first_difference, is_near_tie, margin_below_top, near_tie_bound
from nanospec.result import Candidates

HALF_DTYPES = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize(
    ("tokens", "reference", "position"),
    [([1, 2], [1, 2], None), ([1, 3], [1, 2], 1), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1], 1), ([], [], None)],
)
def test_first_difference_counts_an_end_as_a_token(tokens, reference, position):
    assert first_difference(tokens, reference) == position


@pytest.mark.parametrize(("token_id", "margin"), [(7, 0.0), (4, 0.25), (9, 6.0), (5, None)])
def test_the_margin_is_that_of_the_token_itself_not_of_the_second_best(token_id, margin):
    assert margin_below_top(token_id, Candidates([7, 4, 9], [16.0, 15.75, 10.0])) == margin


def test_the_bounds_of_the_docstring():
    assert near_tie_bound(torch.bfloat16, 16.0) == 0.5
    assert near_tie_bound(torch.float16, 16.0) == 0.0625
    assert near_tie_bound(torch.bfloat16, -16.0) == 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_precision_knows_no_near_tie(dtype):
    assert not is_near_tie(0.0, 16.0, dtype)


def test_an_integer_dtype_is_refused():
    with pytest.raises(TypeError, match=r"dtype must be a floating point type, got torch.int64"):
        near_tie_bound(torch.int64, 16.0)


@given(dtype=st.sampled_from(HALF_DTYPES), top=st.floats(0.25, 60.0), gap=st.floats(0.0, 8.0))
def test_two_logits_at_least_the_bound_apart_keep_their_order_when_both_move(dtype, top, gap):
    best = torch.tensor(top, dtype=dtype)
    second = torch.tensor(max(top - gap, 0.125), dtype=dtype)
    margin = (best.double() - second.double()).item()
    if is_near_tie(margin, best.item(), dtype):
        return
    for _ in range(MAX_SHIFT_ULPS):
        best = torch.nextafter(best, torch.tensor(-torch.inf, dtype=dtype))
        second = torch.nextafter(second, torch.tensor(torch.inf, dtype=dtype))
    assert best >= second
