"""The tracker as a state machine against a plain LRU per sequence, with the head rows of the same ids beside it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nanospec.locality_tracker import LocalityTracker, VocabChange
from nanospec.ops.vocabulary_update_reference import LruVocabulary

HIDDEN_SIZE = 3


class TrackerMachine(RuleBasedStateMachine):
    # Sizes and ids are drawn evenly: left to itself hypothesis mostly builds sets that are empty, full or all pinned.
    @initialize(
        vocab_size=st.sampled_from((1, 2, 5, 9, 12)),
        capacity=st.sampled_from((1, 2, 3, 4, 7, 12)),
        num_pinned=st.sampled_from((0, 0, 0, 1, 2, 12)),
        batch_size=st.sampled_from((1, 2, 3)),
        seed=st.integers(0, 2**16),
    )
    def build(self, vocab_size: int, capacity: int, num_pinned: int, batch_size: int, seed: int) -> None:
        self.draw = torch.Generator().manual_seed(seed)
        self.vocab_size, self.capacity, self.batch_size = vocab_size, min(capacity, vocab_size), batch_size
        pinned = torch.randperm(vocab_size, generator=self.draw)[: min(num_pinned, self.capacity)]
        self.pinned, self.held = pinned.tolist(), []  # for good, and until they are released
        self.tracker = LocalityTracker(vocab_size, self.capacity, batch_size, pinned)
        self.models = [LruVocabulary(vocab_size, self.capacity, self.pinned) for _ in range(batch_size)]
        self.head = torch.arange(float(vocab_size))[:, None].expand(-1, HIDDEN_SIZE)
        self.rows = torch.full((batch_size, self.capacity + 1, HIDDEN_SIZE), torch.nan)
        self.rows[:, : len(pinned)] = self.head[pinned]

    @rule(num_ids=st.sampled_from((0, 1, 2, 3, 5, 8, 20)))
    def observe(self, num_ids: int) -> None:
        batch = torch.randint(-2, self.vocab_size + 2, (self.batch_size, num_ids), generator=self.draw)
        change = self.tracker.observe(batch)
        for model, ids in zip(self.models, batch.tolist(), strict=True):
            model.observe(ids)
        assert change.slots.shape == change.ids.shape == (self.batch_size, min(num_ids, self.capacity))
        self.follow(change)

    def follow(self, change: VocabChange) -> None:
        self.rows.scatter_(1, change.slots[:, :, None].expand(-1, -1, HIDDEN_SIZE), self.head[change.ids])

    @rule(num_ids=st.sampled_from((0, 1, 2, 5)))
    def pin(self, num_ids: int) -> None:
        free = [token_id for token_id in range(self.vocab_size) if token_id not in {*self.pinned, *self.held}]
        ids = torch.tensor(free, dtype=torch.int64)[torch.randperm(len(free), generator=self.draw)]
        ids = ids[: min(num_ids, self.capacity - len(self.pinned) - len(self.held))]
        self.held += ids.tolist()
        self.follow(self.tracker.pin(ids))
        for model in self.models:
            model.pin(ids.tolist())

    @rule(num_ids=st.sampled_from((0, 1, 2, 5)))
    def release(self, num_ids: int) -> None:
        ids, self.held = self.held[:num_ids], self.held[num_ids:]
        self.follow(self.tracker.release(torch.tensor(ids, dtype=torch.int64)))
        for model in self.models:
            model.release(ids)

    @rule(way=st.sampled_from(("all", "mask", "positions")), num_kept=st.sampled_from((0, 0, 1, 3, 20)))
    def reset(self, way: str, num_kept: int) -> None:
        way = "all" if self.held else way
        mask = torch.rand(self.batch_size, generator=self.draw) < (1.0 if way == "all" else 0.5)
        rows = {"all": None, "mask": mask, "positions": mask.nonzero().flatten()}[way]
        self.follow(self.tracker.reset(rows, num_kept))
        for model, is_reset in zip(self.models, mask.tolist(), strict=True):
            if is_reset:
                model.reset(num_kept)
                model.pinned = set(self.pinned)
        self.held = []

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
            seen = tracker.was_seen(torch.arange(self.vocab_size).expand(self.batch_size, -1))[row]
            assert set(seen.nonzero().flatten().tolist()) == model.was_seen()

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
TestTracker.settings = settings(max_examples=80, stateful_step_count=15, deadline=None)


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


def test_released_ids_that_were_seen_stay_and_the_last_slots_fill_the_holes() -> None:
    tracker = LocalityTracker(10, 6)
    tracker.observe(torch.tensor([[5]]))
    tracker.pin(torch.tensor([7, 9]))
    tracker.observe(torch.tensor([[3, 9, 8]]))
    assert tracker.draft_ids[0, :5].tolist() == [5, 9, 7, 8, 3]
    change = tracker.release(torch.tensor([7, 9]))
    assert (tracker.draft_ids[0].tolist(), int(tracker.count)) == ([5, 9, 3, 8, 5, 5], 4)
    assert (change.slots.tolist(), change.ids.tolist()) == ([[2, 6]], [[3, 0]])


def test_ids_kept_by_a_reset_are_the_first_to_leave() -> None:
    tracker = LocalityTracker(10, 3)
    tracker.observe(torch.tensor([[1, 2, 3, 4]]))
    tracker.reset(num_kept=2)
    assert set(tracker.draft_ids[0, : int(tracker.count)].tolist()) == {3, 4}
    tracker.observe(torch.tensor([[5, 6]]))
    assert set(tracker.draft_ids[0].tolist()) == {4, 5, 6}


def test_more_pins_than_slots_and_more_releases_than_pins_are_refused() -> None:
    tracker = LocalityTracker(10, 3, 2, pinned_ids=torch.tensor([4]))
    with pytest.raises(ValueError, match="ids must be at most 2, as 1 of 3 slots are pinned, got 3"):
        tracker.pin(torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="ids must be at most 0, which were pinned, got 1"):
        tracker.release(torch.tensor([4]))
    tracker.pin(torch.tensor([1]))
    with pytest.raises(NotImplementedError, match="rows must be None while ids are pinned"):
        tracker.reset(torch.tensor([0]))


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
