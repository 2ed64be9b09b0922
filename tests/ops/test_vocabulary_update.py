"""The fixed-shape update against a plain LRU, and by hand."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec.ops.vocabulary_update import vocabulary_update
from nanospec.ops.vocabulary_update_reference import LruVocabulary


def empty_state(vocab_size: int, capacity: int) -> dict[str, torch.Tensor]:
    return {
        "slot_token": torch.zeros(1, capacity + 1, dtype=torch.int64),
        "slot_seen": torch.arange(-capacity, 1)[None].clone(),
        "token_slot": torch.full((1, vocab_size + 1), -1, dtype=torch.int32),
        "token_seen": torch.cat((torch.full((1, vocab_size), -1), torch.tensor([[2**62]])), 1),
        "count": torch.zeros(1, dtype=torch.int32),
        "clock": torch.zeros(1, dtype=torch.int64),
    }


def test_worked_example() -> None:
    state = empty_state(vocab_size=10, capacity=2)
    # 7 was seen last, so it is the first newcomer to take a slot; both slots were unused.
    slot, ids = vocabulary_update(torch.tensor([[7, 3, 7]]), **state)
    assert (slot.tolist(), ids.tolist()) == ([[0, 1]], [[7, 3]])
    slot, ids = vocabulary_update(torch.tensor([[5]]), **state)
    assert (slot.tolist(), ids.tolist()) == ([[1]], [[5]])  # 3 is older than 7
    slot, ids = vocabulary_update(torch.tensor([[-1, 7, 10]]), **state)
    assert (slot.tolist(), ids.tolist()) == ([[2, 2]], [[0, 0]])  # nothing changed
    assert state["slot_token"][0, :2].tolist() == [7, 5]
    assert state["count"].tolist() == [2]


def test_no_ids_change_nothing() -> None:
    state = empty_state(vocab_size=10, capacity=2)
    before = {name: tensor.clone() for name, tensor in state.items()}
    slot, ids = vocabulary_update(torch.zeros(1, 0, dtype=torch.int64), **state)
    assert slot.shape == ids.shape == (1, 0)
    assert all(torch.equal(state[name], before[name]) for name in state)


@given(
    st.integers(1, 8).flatmap(
        lambda vocab_size: st.tuples(
            st.just(vocab_size),
            st.integers(1, vocab_size),
            st.lists(st.lists(st.integers(-2, vocab_size + 1), max_size=12), max_size=6),
        )
    )
)
@settings(max_examples=100)
def test_the_same_ids_stay_as_in_a_plain_lru(case: tuple[int, int, list[list[int]]]) -> None:
    vocab_size, capacity, batches = case
    state, model = empty_state(vocab_size, capacity), LruVocabulary(vocab_size, capacity)
    for batch in batches:
        vocabulary_update(torch.tensor([batch], dtype=torch.int64), **state)
        model.observe(batch)
        active = state["slot_token"][0, : int(state["count"])].tolist()
        assert len(active) == len(model.active_ids())
        assert set(active) == model.active_ids()


def test_reference_keeps_pinned_ids_and_evicts_the_oldest() -> None:
    model = LruVocabulary(vocab_size=10, capacity=3, pinned_ids=[9])
    model.observe([1, 2, 1, 9, 4])
    assert model.active_ids() == {9, 1, 4}
    model.reset()
    assert model.active_ids() == {9}
