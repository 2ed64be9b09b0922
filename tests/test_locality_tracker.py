"""The tracker as a state machine against a plain LRU per sequence, with the head rows of the same ids beside it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nanospec.locality_tracker import LocalityTracker
from nanospec.ops.vocabulary_update_reference import LruVocabulary

HIDDEN_SIZE = 3


class TrackerMachine(RuleBasedStateMachine):
    @initialize(data=st.data(), vocab_size=st.integers(1, 12), batch_size=st.integers(1, 3))
    def build(self, data: st.DataObject, vocab_size: int, batch_size: int) -> None:
        capacity = data.draw(st.sampled_from((1, vocab_size)) | st.integers(1, vocab_size), label="capacity")
        ids = st.integers(0, vocab_size - 1)
        pinned = data.draw(st.lists(ids, unique=True, max_size=capacity), label="pinned")
        self.vocab_size, self.capacity, self.batch_size, self.pinned = vocab_size, capacity, batch_size, pinned
        self.tracker = LocalityTracker(vocab_size, capacity, batch_size, torch.tensor(pinned, dtype=torch.int64))
        self.models = [LruVocabulary(vocab_size, capacity, pinned) for _ in range(batch_size)]
        self.head = torch.arange(float(vocab_size))[:, None].expand(-1, HIDDEN_SIZE)
        self.rows = torch.full((batch_size, capacity + 1, HIDDEN_SIZE), torch.nan)
        self.rows[:, : len(pinned)] = self.head[pinned]

    @rule(data=st.data(), num_ids=st.integers(0, 20))
    def observe(self, data: st.DataObject, num_ids: int) -> None:
        row = st.lists(st.integers(-2, self.vocab_size + 1), min_size=num_ids, max_size=num_ids)
        batch = data.draw(st.lists(row, min_size=self.batch_size, max_size=self.batch_size), label="batch")
        change = self.tracker.observe(torch.tensor(batch, dtype=torch.int64).reshape(self.batch_size, num_ids))
        for model, ids in zip(self.models, batch, strict=True):
            model.observe(ids)
        assert change.slots.shape == change.ids.shape == (self.batch_size, min(num_ids, self.capacity))
        self.rows.scatter_(1, change.slots[:, :, None].expand(-1, -1, HIDDEN_SIZE), self.head[change.ids])

    @rule()
    def reset_all(self) -> None:
        self.tracker.reset()
        for model in self.models:
            model.reset()

    @rule(data=st.data(), as_mask=st.booleans())
    def reset_some(self, data: st.DataObject, as_mask: bool) -> None:
        mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=self.batch_size, max_size=self.batch_size)))
        self.tracker.reset(mask if as_mask else mask.nonzero().flatten())
        for model, is_reset in zip(self.models, mask.tolist(), strict=True):
            if is_reset:
                model.reset()

    @invariant()
    def active_ids_are_the_models(self) -> None:
        tracker = self.tracker
        for row, model in enumerate(self.models):
            count = int(tracker.count[row])
            active = tracker.draft_ids[row, :count].tolist()
            assert count <= self.capacity
            assert len(set(active)) == count
            assert set(active) == model.active_ids()
            assert active[: len(self.pinned)] == self.pinned

    @invariant()
    def slots_and_tokens_are_inverse(self) -> None:
        for row in range(self.batch_size):
            active = self.tracker.draft_ids[row, : int(self.tracker.count[row])].tolist()
            slot_of = {token_id: slot for slot, token_id in enumerate(active)}
            token_slot = self.tracker.token_slot[row].tolist()
            assert token_slot == [slot_of.get(token_id, -1) for token_id in range(self.vocab_size + 1)]

    @invariant()
    def unused_columns_repeat_the_first_id(self) -> None:
        for ids, count in zip(self.tracker.draft_ids, self.tracker.count, strict=True):
            assert ids.shape == (self.capacity,)
            assert (ids[count:] == (ids[0] if count else 0)).all()

    @invariant()
    def rows_copied_by_the_changes_are_those_of_the_ids(self) -> None:
        for rows, ids, count in zip(self.rows, self.tracker.draft_ids, self.tracker.count, strict=True):
            assert torch.equal(rows[:count], self.head[ids[:count]])


TestTracker = TrackerMachine.TestCase
TestTracker.settings = settings(max_examples=60, stateful_step_count=15, deadline=None)


@given(st.lists(st.lists(st.integers(0, 9), max_size=8), min_size=1, max_size=4))
@settings(max_examples=25)
def test_a_sequence_is_the_same_alone_and_in_a_batch(sequences: list[list[int]]) -> None:
    together = LocalityTracker(10, 4, len(sequences))
    width = max(map(len, sequences))
    padded = [ids + [-1] * (width - len(ids)) for ids in sequences]
    together.observe(torch.tensor(padded, dtype=torch.int64))
    for row, ids in enumerate(sequences):
        alone = LocalityTracker(10, 4)
        alone.observe(torch.tensor([ids], dtype=torch.int64))
        assert torch.equal(together.draft_ids[row], alone.draft_ids[0])
        assert together.count[row] == alone.count[0]


def test_buffers_keep_their_addresses() -> None:
    tracker = LocalityTracker(20, 5)
    addresses = {name: buffer.data_ptr() for name, buffer in tracker.named_buffers()}
    for _ in range(3):
        tracker.observe(torch.randint(20, (1, 9), dtype=torch.int32))
    tracker.reset()
    assert {name: buffer.data_ptr() for name, buffer in tracker.named_buffers()} == addresses
    assert tracker.draft_ids.data_ptr() == tracker.slot_token.data_ptr()


def test_nothing_is_saved() -> None:
    assert not LocalityTracker(20, 5).state_dict()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"capacity": 0}, ValueError, "capacity must be between 1 and vocab_size 10, got 0"),
        ({"capacity": 11}, ValueError, "capacity must be between 1 and vocab_size 10, got 11"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        (
            {"pinned_ids": torch.tensor([1, 2, 1])},
            ValueError,
            "pinned_ids: .* distinct, got 1 at index 0 and again at 2",
        ),
        ({"pinned_ids": torch.tensor([10])}, ValueError, "pinned_ids: .* between 0 and 9, got 10 at index 0"),
        ({"pinned_ids": torch.tensor([1, -1])}, ValueError, "pinned_ids: .* between 0 and 9, got -1 at index 1"),
        ({"pinned_ids": torch.arange(5)}, ValueError, r"at most capacity 4 ids, got \(5,\)"),
        ({"pinned_ids": torch.tensor([1.0])}, TypeError, "pinned_ids: token ids must be integers"),
    ],
)
def test_bad_construction_is_refused(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LocalityTracker(**{"vocab_size": 10, "capacity": 4, **arguments})


def test_bad_observations_and_resets_are_refused() -> None:
    tracker = LocalityTracker(10, 4, batch_size=2)
    for ids in (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool)):
        with pytest.raises(TypeError, match="ids must be integers"):
            tracker.observe(ids)
    for ids in (torch.zeros(2, dtype=torch.int64), torch.zeros(3, 4, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"ids must be \[2, n\]"):
            tracker.observe(ids)
    with pytest.raises(ValueError, match=r"rows as a mask must be \[2\]"):
        tracker.reset(torch.tensor([True]))
    with pytest.raises(TypeError, match="rows must be a bool mask or integer positions"):
        tracker.reset(torch.tensor([0.0]))
    assert tracker.count.tolist() == [0, 0]
