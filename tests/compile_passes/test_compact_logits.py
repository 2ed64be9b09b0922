from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from compile_passes.compact_logits import (
    compact_argmax,
    compact_max,
    compact_topk,
    is_used,
    mask_unused,
    scatter_to_vocabulary,
)

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# A softmax over K columns adds up the same terms as one over V with zeros between, in another order.
ROUNDING = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
TIES = (-2.0, -1.0, -0.0, 0.0, 1.0, 3.0)
LOGITS = (*TIES, -math.inf, math.inf, math.nan)
PROBABILITIES = (0.0, 0.25, 0.5, 1.0)


class Case(NamedTuple):
    """compact [R, K], its unused columns filled, and the wide [R, V] that it stands for, made one number at a time."""

    compact: Tensor
    draft_ids: Tensor
    count: Tensor
    fill: float
    wide: Tensor

    @property
    def vocab_size(self) -> int:
        return self.wide.shape[-1]


def build_case(
    rows: list[list[float]], ids: list[int], count: int, vocab_size: int, fill: float, dtype: torch.dtype
) -> Case:
    num_ids = len(ids)
    compact = torch.full((len(rows), num_ids), fill, dtype=dtype)
    wide = torch.full((len(rows), vocab_size), fill, dtype=dtype)
    for row, values in enumerate(rows):
        for column in range(count):
            compact[row, column] = wide[row, ids[column]] = values[column]
    draft_ids = torch.tensor([*ids[:count], *[ids[0]] * (num_ids - count)])
    return Case(compact, draft_ids, torch.tensor([count], dtype=torch.int32), fill, wide)


@st.composite
def cases(draw: st.DrawFn, fill: float = -math.inf, values: tuple[float, ...] = LOGITS) -> Case:
    vocab_size = draw(st.sampled_from((1, 2, 5, 9)))
    num_ids = draw(st.sampled_from([size for size in (1, 2, 4, 5, 9) if size <= vocab_size]))
    count = draw(st.sampled_from((0, num_ids, num_ids // 2)))
    ids = draw(st.permutations(range(vocab_size)))[:num_ids]
    chosen = draw(st.sampled_from((values, values[:2], TIES if fill < 0 else values)))
    row = st.lists(st.sampled_from(chosen), min_size=num_ids, max_size=num_ids)
    rows = draw(st.lists(row, min_size=1, max_size=3))
    return build_case(rows, ids, count, vocab_size, fill, draw(st.sampled_from(DTYPES)))


any_case = st.one_of(cases(), cases(fill=0.0, values=PROBABILITIES))


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def stable_order(wide: Tensor) -> Tensor:
    """Ids by descending value, of equal ones the smallest first; NaN before all."""
    return wide.sort(dim=-1, descending=True, stable=True).indices


@given(any_case)
def test_used_columns_are_those_below_the_count(case: Case) -> None:
    used = is_used(case.draft_ids, case.count).tolist()
    assert used == [column < int(case.count) for column in range(len(used))]
    anything = torch.randn_like(case.compact)
    masked = mask_unused(anything, case.draft_ids, case.count, case.fill)
    assert_same(masked[:, used], anything[:, used])
    assert (masked[:, [not flag for flag in used]] == case.fill).all()


@given(any_case)
def test_scatter_makes_the_wide_tensor(case: Case) -> None:
    scattered = scatter_to_vocabulary(case.compact, case.draft_ids, case.count, case.vocab_size, case.fill)
    assert_same(scattered, case.wide)


@given(any_case)
def test_argmax_is_the_smallest_id_of_the_largest_value(case: Case) -> None:
    ids = compact_argmax(case.compact, case.draft_ids, case.fill)
    assert_same(ids, stable_order(case.wide)[:, 0])
    assert_same(ids, case.wide.argmax(-1))
    assert_same(
        compact_argmax(case.compact, case.draft_ids, case.fill, keepdim=True), case.wide.argmax(-1, keepdim=True)
    )


@pytest.mark.parametrize("keepdim", [False, True])
@given(any_case)
def test_max_is_that_of_the_wide_tensor(keepdim: bool, case: Case) -> None:
    values, ids = compact_max(case.compact, case.draft_ids, case.fill, keepdim=keepdim)
    expected = case.wide.max(-1, keepdim=keepdim)
    assert_same(values, expected.values)
    assert_same(ids, expected.indices)


@given(any_case, st.integers(1, 9))
def test_topk_is_the_stable_order_of_the_ids_in_use_then_fill(case: Case, k: int) -> None:
    k = min(k, case.compact.shape[-1])
    values, ids = compact_topk(case.compact, case.draft_ids, case.count, k)
    assert_same(values, case.wide.sort(dim=-1, descending=True, stable=True).values[:, :k])
    in_use = set(case.draft_ids[: int(case.count)].tolist())
    for row, order in enumerate(stable_order(case.wide).tolist()):
        expected = [token for token in order if token in in_use][:k]
        assert ids[row].tolist() == expected + [int(case.draft_ids[0])] * (k - len(expected))


@pytest.mark.parametrize(("normalise", "fill"), [(torch.softmax, 0.0), (torch.log_softmax, -math.inf)])
@given(cases())
def test_a_softmax_over_draft_ids_is_the_wide_one(normalise: Callable[..., Tensor], fill: float, case: Case) -> None:
    normalised = normalise(case.compact, -1)
    scattered = scatter_to_vocabulary(normalised, case.draft_ids, case.count, case.vocab_size, fill, True)
    tolerance = ROUNDING[case.compact.dtype]
    expected = normalise(case.wide, -1)
    torch.testing.assert_close(scattered, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize(("normalise", "fill"), [(torch.softmax, 0.0), (torch.log_softmax, -math.inf)])
@given(cases())
def test_consumers_of_a_softmax_agree_with_its_wide_tensor(
    normalise: Callable[..., Tensor], fill: float, case: Case
) -> None:
    compact = normalise(case.compact, -1)
    wide = scatter_to_vocabulary(compact, case.draft_ids, case.count, case.vocab_size, fill, True)
    assert_same(compact_argmax(compact, case.draft_ids, fill, True), wide.argmax(-1))
    values, ids = compact_max(compact, case.draft_ids, fill, True)
    assert_same(values, wide.max(-1).values)
    assert_same(ids, wide.max(-1).indices)
    k = compact.shape[-1]
    assert_same(compact_topk(compact, case.draft_ids, case.count, k)[0], wide.topk(k).values)


def test_a_nan_spreads_over_a_row_and_no_further() -> None:
    case = build_case([[math.nan, 1.0], [2.0, 1.0]], [3, 1], 2, 5, -math.inf, torch.float32)
    log_probs = torch.log_softmax(case.compact, -1)
    wide = scatter_to_vocabulary(log_probs, case.draft_ids, case.count, 5, -math.inf, True)
    assert wide[0].isnan().all()
    assert wide[1].isneginf().tolist() == [True, False, True, False, True]
    assert compact_argmax(log_probs, case.draft_ids, -math.inf, True).tolist() == [0, 3]
    assert compact_argmax(case.compact, case.draft_ids, -math.inf).tolist() == [3, 3]


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_the_gradient_of_a_scatter_skips_unused_columns_and_counts_the_first_once(count: int) -> None:
    draft_ids = torch.tensor([6, 2, 4, 0, 1])
    draft_ids[count:] = draft_ids[0]
    num_active = torch.tensor([count], dtype=torch.int32)
    compact = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)

    def scatter(compact: Tensor) -> Tensor:
        return scatter_to_vocabulary(compact, draft_ids, num_active, 7, 0.0)

    weights = torch.randn(2, 3, 7, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((scatter(compact) * weights).sum(), compact)
    expected = weights[..., draft_ids]
    expected[..., count:] = 0
    assert_same(gradient, expected)
    if count > 0:  # with no id in use the value of column 0 is written, though it has no gradient: it must be `fill`
        used = compact[..., :count].detach().requires_grad_()
        rest = torch.zeros(2, 3, 5 - count, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda used: scatter(torch.cat([used, rest], -1)), used)


@given(cases(values=TIES))
def test_gradients_of_values_land_on_the_columns_that_hold_them(case: Case) -> None:
    compact = case.compact.double().requires_grad_()
    k = compact.shape[-1]
    values, ids = compact_topk(compact, case.draft_ids, case.count, k)
    (gradient,) = torch.autograd.grad(values[values.isfinite()].sum(), compact)
    assert_same(gradient, is_used(case.draft_ids, case.count).double().expand_as(compact))
    assert not ids.requires_grad
