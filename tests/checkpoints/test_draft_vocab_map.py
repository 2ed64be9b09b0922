"""d2t and t2d, one, both, or broken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nanospec.checkpoints.draft_vocab_map import read_vocab_map

IDS = torch.tensor([0, 3, 4])
D2T = torch.tensor([0, 2, 2])
T2D = torch.tensor([True, False, False, True, True])


@pytest.mark.parametrize(
    ("d2t", "t2d"),
    [(D2T, T2D), (D2T, None), (None, T2D), (D2T.int(), T2D.int()), (D2T.half(), None), (D2T.half() + 900, T2D)],
    ids=["both", "d2t", "t2d", "other integers", "floating offsets", "lost offsets beside a mask"],
)
def test_either_map_tells_the_ids(d2t: Tensor | None, t2d: Tensor | None) -> None:
    ids = read_vocab_map(d2t, t2d, num_rows=3, vocab_size=5)
    assert ids is not None
    assert ids.dtype == torch.int64
    assert torch.equal(ids, IDS)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float16, 2**11), (torch.bfloat16, 2**8), (torch.float32, 2**24)])
def test_floating_offsets_that_may_be_rounded_are_refused_without_a_mask(dtype: torch.dtype, limit: int) -> None:
    exact = torch.tensor([0, limit - 1], dtype=torch.float64)
    ids = read_vocab_map(exact.to(dtype), None, 2, limit + 9)
    assert ids is not None
    assert ids.tolist() == [0, limit]
    rounded = (exact + torch.tensor([0, 2])).to(dtype)
    assert rounded[1] == limit  # not limit + 1
    with pytest.raises(ValueError, match=f"d2t must hold integers .* below {limit}, up to which {dtype} is exact, got"):
        read_vocab_map(rounded, None, 2, limit + 9)
    mask = torch.zeros(limit + 9, dtype=torch.bool) if limit < 2**20 else None
    if mask is not None:
        mask[[0, limit + 2]] = True
        ids = read_vocab_map(rounded, mask, 2, limit + 9)
        assert ids is not None
        assert ids.tolist() == [0, limit + 2]


@pytest.mark.parametrize("offset", [0.5, torch.nan, torch.inf])
def test_offsets_that_are_no_whole_numbers_are_refused(offset: float) -> None:
    with pytest.raises(ValueError, match=f"d2t must hold integers .*, got {offset:g}"):
        read_vocab_map(torch.tensor([0, offset, 2]), None, 3, 5)


def test_a_map_of_every_id_to_itself_is_none() -> None:
    assert read_vocab_map(None, None, 5, 5) is None
    assert read_vocab_map(torch.zeros(5, dtype=torch.int64), None, 5, 5) is None


@pytest.mark.parametrize(
    ("d2t", "t2d", "message"),
    [
        (None, None, "draft must hold 'd2t' or 't2d' because its head scores 3 of 5 ids"),
        (D2T[:2], None, r"d2t must have shape \(3,\) as its head has rows, got \(2,\)"),
        (D2T, D2T, r"t2d must have shape \(5,\), one per id of the target, got \(3,\)"),
        (None, ~T2D, "t2d must select 3 ids as its head has rows, got 2"),
        (torch.tensor([0, 2, 3]), None, "d2t must lead to ids between 0 and 4, got 5"),
        (torch.tensor([0, -2, 2]), None, "d2t must lead to ids between 0 and 4, got -1"),
        (torch.tensor([0, 2, 1]), None, "d2t must lead to distinct ids, got 1 repetitions"),
        (torch.tensor([0, 3, 1]), T2D, "d2t and t2d must name the same ids, got 4 and 3 for row 1"),
        (D2T, torch.tensor([1, 1, 0, 0, 1]), "d2t and t2d must name the same ids, got 3 and 1 for row 1"),
    ],
)
def test_maps_that_cannot_be_are_refused(d2t: Tensor | None, t2d: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_vocab_map(d2t, t2d, num_rows=3, vocab_size=5)
