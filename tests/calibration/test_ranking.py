"""Which ids a list holds, and in which order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanospec.calibration.ranking import coverage, rank_ids


@pytest.mark.parametrize(
    ("counts", "kept", "num_ids", "expected"),
    [
        ([5, 0, 7, 5], [1], None, [1, 2, 0, 3]),  # the example of the docstring
        ([5, 0, 7, 5], [], None, [2, 0, 3]),
        ([5, 0, 7, 5], [3, 1], 3, [3, 1, 2]),
        ([5, 0, 7, 5], [2, 2], 2, [2, 0]),
        ([0, 0], [1], 1, [1]),
    ],
)
def test_a_table(counts: list[int], kept: list[int], num_ids: int | None, expected: list[int]) -> None:
    ids = rank_ids(torch.tensor(counts), kept, num_ids)
    assert (ids.dtype, ids.tolist()) == (torch.int64, expected)


@given(st.lists(st.integers(0, 4), min_size=4, max_size=20), st.lists(st.integers(0, 3), max_size=3), st.data())
def test_every_length_holds_the_kept_ids_and_the_most_frequent_others(counts, kept, data) -> None:
    ids = rank_ids(torch.tensor(counts), kept).tolist()
    assert len(set(ids)) == len(ids)
    assert set(ids) == set(kept) | {token_id for token_id, count in enumerate(counts) if count}
    least = max(1, len(set(kept)))
    if len(ids) < least:
        return
    num_ids = data.draw(st.integers(least, len(ids)))
    shorter = rank_ids(torch.tensor(counts), kept, num_ids).tolist()
    assert shorter == ids[:num_ids]
    assert set(kept) <= set(shorter)
    left_out = [counts[token_id] for token_id in range(len(counts)) if token_id not in shorter]
    assert max(left_out, default=0) <= min((counts[i] for i in shorter if i not in kept), default=max(counts))


@pytest.mark.parametrize("num_ids", [0, 1, 5])
def test_lengths_that_cannot_be_are_refused(num_ids: int) -> None:
    with pytest.raises(ValueError, match=f"num_ids must be between 2, .* and 4, .* got {num_ids}"):
        rank_ids(torch.tensor([5, 0, 7, 5]), [1, 2], num_ids)


@pytest.mark.parametrize("token_id", [-1, 4])
def test_a_kept_id_outside_the_vocabulary_is_named(token_id: int) -> None:
    with pytest.raises(ValueError, match=f"kept_ids must be between 0 and 3, got {token_id}"):
        rank_ids(torch.tensor([5, 0, 7, 5]), [1, token_id])


def test_coverage_is_the_share_of_the_first_ids() -> None:
    assert coverage(torch.tensor([5, 0, 10, 5]), torch.tensor([1, 2, 0])).tolist() == [0.0, 0.5, 0.75]
    assert coverage(torch.tensor([0, 0]), torch.tensor([1])).tolist() == [0.0]
