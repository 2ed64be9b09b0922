"""Logits over selected rows against one plain product per sequence."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec.ops.gathered_linear import gathered_linear
from nanospec.ops.gathered_linear_reference import gathered_linear_reference

# float64 sums of at most 7 products of order 1: only the order of summation differs.
ATOL = 1e-12


@given(
    batch_size=st.integers(1, 3),
    num_tokens=st.integers(0, 5),
    hidden_size=st.integers(1, 7),
    vocab_size=st.integers(1, 19),
    num_ids=st.integers(1, 23),
    has_shared_ids=st.booleans(),
    has_bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60)
def test_matches_reference(
    batch_size: int,
    num_tokens: int,
    hidden_size: int,
    vocab_size: int,
    num_ids: int,
    has_shared_ids: bool,
    has_bias: bool,
    seed: int,
) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(batch_size, num_tokens, hidden_size, dtype=torch.float64, generator=draw)
    weight = torch.randn(vocab_size, hidden_size, dtype=torch.float64, generator=draw)
    # More ids than the vocabulary has: repeated ones are part of the contract.
    ids = torch.randint(vocab_size, (1 if has_shared_ids else batch_size, num_ids), generator=draw)
    bias = torch.randn(vocab_size, dtype=torch.float64, generator=draw) if has_bias else None
    got = gathered_linear(x, weight, ids, bias)
    assert got.shape == (batch_size, num_tokens, num_ids)
    torch.testing.assert_close(got, gathered_linear_reference(x, weight, ids, bias), rtol=0, atol=ATOL)


X, WEIGHT, IDS = torch.zeros(2, 3, 4), torch.zeros(10, 4), torch.zeros(1, 5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("x", "weight", "ids", "bias", "error", "message"),
    [
        (X[0], WEIGHT, IDS, None, ValueError, r"x must be \[B, n, D\]"),
        (X, WEIGHT[:, :3], IDS, None, ValueError, r"weight \[V, D\], got \(2, 3, 4\) and \(10, 3\)"),
        (X, WEIGHT, IDS[0], None, ValueError, r"draft_ids must be \[2 or 1, K\]"),
        (X, WEIGHT, IDS.expand(3, -1), None, ValueError, r"draft_ids must be \[2 or 1, K\], got shape \(3, 5\)"),
        (X, WEIGHT, IDS.int(), None, TypeError, "draft_ids must be int64"),
        (X, WEIGHT.double(), IDS, None, TypeError, "weight must have the dtype of x"),
        (X, WEIGHT, IDS, torch.zeros(9), ValueError, r"bias must be \[10\]"),
    ],
)
def test_what_does_not_fit_is_refused(x, weight, ids, bias, error, message) -> None:
    with pytest.raises(error, match=message):
        gathered_linear(x, weight, ids, bias)
