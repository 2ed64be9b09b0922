"""The blocked search against a stable sort."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec.ops.blocked_topk import BLOCK_SIZE, blocked_argmax, blocked_topk
from nanospec.ops.blocked_topk_reference import blocked_topk_reference

# Below one block, at its edges, and wide enough to be searched by blocks; with and without a tail.
WIDTHS = (1, 7, 255, 256, 257, 767, 768, 1024, 1031, 4096, 4609, 5000)


def check_against_sort(logits: torch.Tensor, k: int) -> None:
    values, ids = blocked_topk(logits, k)
    expected_values, expected_ids = blocked_topk_reference(logits, k)
    assert torch.equal(values, expected_values)
    assert torch.equal(ids[:, 0], expected_ids[:, 0])
    assert torch.equal(logits.gather(1, ids), values)
    assert all(len(set(row)) == k for row in ids.tolist())
    max_values, max_ids = blocked_argmax(logits)
    assert torch.equal(max_values, expected_values[:, 0])
    assert torch.equal(max_ids, logits.argmax(1))


def by_column(logits: torch.Tensor) -> torch.Tensor:
    """The same logits, each column in one piece."""
    return logits.t().contiguous().t()


@given(
    num_rows=st.integers(0, 3),
    vocab_size=st.sampled_from(WIDTHS),
    k=st.integers(1, 8),
    num_levels=st.sampled_from((1, 2, 3, 50, 10**6)),
    masked_share=st.sampled_from((0.0, 0.5, 0.999, 1.0)),
    dtype=st.sampled_from((torch.float32, torch.float64, torch.bfloat16)),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=100)
def test_matches_sort(num_rows, vocab_size, k, num_levels, masked_share, dtype, seed) -> None:
    draw = torch.Generator().manual_seed(seed)
    # Few levels: many ties.
    logits = torch.randint(num_levels, (num_rows, vocab_size), generator=draw).to(dtype)
    logits[torch.rand(num_rows, vocab_size, generator=draw) < masked_share] = float("-inf")
    check_against_sort(logits, min(k, vocab_size))
    check_against_sort(by_column(logits), min(k, vocab_size))


@pytest.mark.parametrize("first", [0, 5, BLOCK_SIZE, 3 * BLOCK_SIZE + 9, 20 * BLOCK_SIZE + 3])
def test_the_first_of_equal_maxima_comes_first(first: int) -> None:
    logits = torch.zeros(1, 20 * BLOCK_SIZE + 7)
    logits[0, first::50] = 1.0
    check_against_sort(logits, 3)
    assert blocked_argmax(logits)[1].item() == first
    assert blocked_argmax(by_column(logits.expand(2, -1)))[1].tolist() == [first, first]


@given(pos=st.integers(0, 20 * BLOCK_SIZE + 6), k=st.integers(1, 4))
@settings(max_examples=30)
def test_nan_surfaces_in_its_row_only(pos: int, k: int) -> None:
    logits = torch.zeros(2, 20 * BLOCK_SIZE + 7)
    logits[1, pos] = float("nan")
    for laid_out in (logits, by_column(logits)):
        values, ids = blocked_topk(laid_out, k)
        assert values[1, 0].isnan()
        assert ids[1, 0].item() == pos
        assert values[0].isfinite().all()
        assert blocked_argmax(laid_out)[0].isnan().tolist() == [False, True]


def test_a_view_with_strided_rows_is_searched_too() -> None:
    logits = torch.randn(2, 3, 5000, generator=torch.Generator().manual_seed(0))
    check_against_sort(logits[:, 1], 4)
    check_against_sort(logits[0, :, 100:4900], 4)


def test_bad_arguments_are_refused() -> None:
    logits = torch.zeros(2, 5)
    for k in (0, 6):
        with pytest.raises(ValueError, match=f"k must be between 1 and the number of columns 5, got {k}"):
            blocked_topk(logits, k)
    with pytest.raises(ValueError, match="logits must be 2-D"):
        blocked_topk(logits[0], 1)
    with pytest.raises(TypeError, match="logits must be floating point"):
        blocked_argmax(logits.long())
