"""The best ids of wide logits: torch.topk against the search by blocks."""

from __future__ import annotations

import pytest
import torch

from bench.shapes import DTYPE, NUM_ROWS, Shape
from nanospec.ops.blocked_topk import blocked_topk
from nanospec.ops.blocked_topk_reference import blocked_topk_reference


@pytest.mark.parametrize("num_rows", NUM_ROWS)
@pytest.mark.parametrize("k", [1, 3, 8])
def test_time_of_blocked_topk(shape: Shape, num_rows: int, k: int, device: torch.device, compare) -> None:
    torch.manual_seed(0)
    logits = torch.randn(num_rows, shape.vocab_size, device=device).to(DTYPE)
    values, ids = blocked_topk(logits, k)
    expected_values, expected_ids = blocked_topk_reference(logits, k)
    assert torch.equal(values, expected_values)
    assert torch.equal(ids[:, 0], expected_ids[:, 0])
    compare("top-k", {"torch.topk": lambda: logits.topk(k), "blocked_topk": lambda: blocked_topk(logits, k)})
