"""The drafter's output projection: the whole vocabulary, K rows read from it, K rows kept contiguous."""

from __future__ import annotations

import pytest
import torch

from bench.shapes import DTYPE, NUM_ROWS, Shape
from nanospec.gathered_head import GatheredHead
from nanospec.ops.gathered_linear_reference import gathered_linear_reference
from nanospec.records import DraftVocab
from nanospec.vocab.full import FullVocab

# bf16 results of order 1, each rounded once to 8 significant bits; the order of summation may move the rounding.
TOLERANCE = 2**-6


@pytest.mark.parametrize("num_rows", NUM_ROWS)
def test_time_of_gathered_head(
    shape: Shape, num_rows: int, head_weight: torch.Tensor, device: torch.device, compare
) -> None:
    draft_ids = torch.randperm(shape.vocab_size, device=device)[None, : shape.draft_size]
    count = torch.tensor([shape.draft_size], dtype=torch.int32, device=device)
    hidden = torch.randn(1, num_rows, shape.hidden_size, dtype=DTYPE, device=device)
    head, full = GatheredHead(head_weight), FullVocab(head_weight).select()
    indexed = DraftVocab(draft_ids, count, None)
    packed = DraftVocab(draft_ids, count, head_weight[draft_ids])

    expected = gathered_linear_reference(hidden, head_weight, draft_ids)
    for logits in (head(hidden, indexed), head(hidden, packed), head(hidden, full)[..., draft_ids[0]]):
        torch.testing.assert_close(logits, expected, rtol=TOLERANCE, atol=TOLERANCE)
    compare(
        f"head, K = {shape.draft_size}",
        {
            "full": lambda: head(hidden, full),
            "indexed": lambda: head(hidden, indexed),
            "packed": lambda: head(hidden, packed),
        },
    )
