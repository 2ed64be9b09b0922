"""How large the base is: what a block must bring, how evidence moves it, and that it does not flutter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanospec.vocab.base_size import BLOCK_IDS, INTERVAL, MOST_BLOCKS, TYPICAL_ACCEPT_LENGTH, TYPICAL_LACK, BaseSize

STEPS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), max_size=80)


def cost_of_block(block: int) -> float:
    """The row cost at which typical text just does not pay for it."""
    return TYPICAL_LACK[block] / TYPICAL_ACCEPT_LENGTH / BLOCK_IDS


def levels(size: BaseSize, num_lacking: int, num_steps: int, num_tokens: int = 4) -> list[int]:
    return [size.observe(num_lacking, num_tokens) for _ in range(num_steps)]


def test_it_starts_with_the_blocks_that_typical_text_pays_for():
    assert BaseSize(MOST_BLOCKS, 0.0).num_blocks == MOST_BLOCKS
    assert BaseSize(MOST_BLOCKS, cost_of_block(2) * 1.001).num_blocks == 2
    assert BaseSize(MOST_BLOCKS, cost_of_block(2) * 0.999).num_blocks > 2
    assert BaseSize(MOST_BLOCKS, 1.0).num_blocks == 0


def test_text_that_lacks_much_makes_it_grow_and_text_that_lacks_nothing_shrink():
    size = BaseSize(MOST_BLOCKS, cost_of_block(2))
    start = size.num_blocks
    assert levels(size, 2, 100)[-1] == MOST_BLOCKS
    assert levels(size, 0, 2000)[-1] == 0
    assert BaseSize(MOST_BLOCKS, cost_of_block(2)).num_blocks == start, "another request starts anew"


def test_a_longer_accept_length_makes_time_dearer():
    """A step of more tokens is worth more time, so a row costs more tokens."""
    short, long = (levels(BaseSize(MOST_BLOCKS, cost_of_block(2)), 1, 60, n)[-1] for n in (2, 40))
    assert short > long


@given(STEPS, st.floats(0, 1e-4))
def test_it_moves_one_block_at_a_time_and_never_twice_within_an_interval(steps, row_cost):
    size = BaseSize(MOST_BLOCKS, row_cost)
    before, since = size.num_blocks, 0
    for num_lacking, num_tokens in steps:
        after, since = size.observe(num_lacking, num_tokens), since + 1
        assert 0 <= after <= MOST_BLOCKS
        if after != before:
            assert abs(after - before) == 1
            assert since >= INTERVAL
            before, since = after, 0


@given(STEPS, st.floats(0, 1e-4))
def test_the_same_signals_give_the_same_levels(steps, row_cost):
    first, second = BaseSize(MOST_BLOCKS, row_cost), BaseSize(MOST_BLOCKS, row_cost)
    assert [first.observe(*step) for step in steps] == [second.observe(*step) for step in steps]


def test_what_lies_between_the_two_thresholds_changes_nothing():
    size = BaseSize(MOST_BLOCKS, cost_of_block(2) * 1.1)
    typical = sum(TYPICAL_LACK)
    lack, seen = 0.0, set()
    for _ in range(400):  # lacking tokens at the typical rate, in whole numbers
        lack += typical
        seen.add(size.observe(int(lack), int(TYPICAL_ACCEPT_LENGTH)))
        lack -= int(lack)
    assert len(seen) == 1


@pytest.mark.parametrize("row_cost", [-0.1, float("inf"), float("nan")])
def test_a_cost_that_is_none_is_refused(row_cost):
    with pytest.raises(ValueError, match="row_cost must be at least 0 and finite"):
        BaseSize(MOST_BLOCKS, row_cost)
