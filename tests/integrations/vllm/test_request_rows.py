"""Rows of requests: each is the least-recently-used set over its own text, whatever comes and goes beside it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec.integrations.vllm.request_rows import PROMPT_CHUNK, RequestRows
from nanospec.ops.vocabulary_update_reference import LruVocabulary

VOCAB_SIZE, CAPACITY, MAX_REQUESTS, NUM_TOP = 23, 6, 3, 2
D2T_IDS = torch.tensor([1, 2, 5, 8, 9, 13, 14, 20, 22])
PINNED = torch.tensor([5, 0, 13])


def active_ids(rows: RequestRows, request_id: str) -> set[int]:
    """Ids of the target that a request drafts from."""
    row = rows.row_index([request_id])
    positions = rows.tracker.draft_ids[row][0, : int(rows.tracker.count[row])]
    return set((positions if rows.target_ids is None else rows.target_ids[positions]).tolist())


class PlainRequest:
    """The oracle: one set over ids that the draft can say, and what it was shown."""

    def __init__(self, target_ids, pinned_ids, token_ids) -> None:
        self.sayable = set(range(VOCAB_SIZE)) if target_ids is None else set(target_ids.tolist())
        pinned = [] if pinned_ids is None else [i for i in pinned_ids.tolist() if i in self.sayable]
        self.lru = LruVocabulary(VOCAB_SIZE, CAPACITY, pinned)
        self.observe(token_ids)

    def observe(self, ids) -> None:
        self.lru.observe(i for i in ids if i in self.sayable)

    def follow(self, token_ids, top_ids) -> None:
        """What the target suggested, last choices first, then the text."""
        self.observe([i for rank in reversed(range(NUM_TOP)) for i in [top[rank] for top in top_ids]])
        self.observe(token_ids)


ids = st.integers(-1, VOCAB_SIZE)
passes = st.lists(st.tuples(ids, st.tuples(ids, ids)), min_size=2, max_size=2)
batches = st.lists(
    st.dictionaries(st.sampled_from("abcde"), passes, min_size=1, max_size=MAX_REQUESTS), min_size=1, max_size=8
)


@settings(max_examples=40)
@given(batches, st.dictionaries(st.sampled_from("abcde"), st.lists(ids, max_size=9)), st.booleans(), st.booleans())
def test_rows_are_the_sets_of_their_own_requests(batches, prompts, is_reduced, is_pinned):
    target_ids, pinned_ids = D2T_IDS if is_reduced else None, PINNED if is_pinned else None
    rows = RequestRows(VOCAB_SIZE, CAPACITY, MAX_REQUESTS, pinned_ids, target_ids)
    plain: dict[str, PlainRequest] = {}
    for batch in batches:
        living = dict.fromkeys(batch, "alive")
        rows.enter(list(batch), living, lambda name: prompts.get(name, []))
        plain = {name: request for name, request in plain.items() if name in batch}
        for name in batch:
            plain.setdefault(name, PlainRequest(target_ids, pinned_ids, prompts.get(name, [])))
        tokens = torch.tensor([[token for token, _ in said] for said in batch.values()])
        top = torch.tensor([[list(best) for _, best in said] for said in batch.values()])
        rows.observe(list(batch), tokens, top)
        for name, said in batch.items():
            plain[name].follow([token for token, _ in said], [best for _, best in said])
            assert active_ids(rows, name) == plain[name].lru.active_ids()
        is_empty = {name: not plain[name].lru.active_ids() for name in batch}
        assert rows.any_empty(list(batch)) == any(is_empty.values())


@settings(max_examples=40)
@given(st.lists(ids, max_size=9), st.lists(st.lists(st.tuples(ids, ids), max_size=4), min_size=1, max_size=3))
def test_suggestions_over_a_prompt_are_older_than_its_text(prompt, chunks):
    rows, plain = RequestRows(VOCAB_SIZE, CAPACITY, 1, target_ids=D2T_IDS), PlainRequest(D2T_IDS, None, prompt)
    for place, chunk in enumerate(chunks):
        top_ids = {"a": torch.tensor(chunk)} if chunk else {}
        if place == 0 and chunk:
            plain = PlainRequest(D2T_IDS, None, [])
        if chunk:
            plain.follow(prompt, chunk)
        rows.enter(["a"], {"a": "alive"}, lambda name: prompt, top_ids)
        assert active_ids(rows, "a") == plain.lru.active_ids()
        assert rows.any_empty(["a"]) == (not plain.lru.active_ids())


def rows_of(*request_ids: str, max_requests: int = MAX_REQUESTS) -> RequestRows:
    rows = RequestRows(VOCAB_SIZE, CAPACITY, max_requests)
    for place, request_id in enumerate(request_ids):
        rows.admit(request_id, [place], "object")
    return rows


def test_a_row_that_is_taken_over_starts_empty():
    rows = rows_of("a", "b")
    rows.enter(["c"], {"b": "object", "c": "object"}, lambda name: [7])
    assert rows.row_index(["c", "b"]).tolist() == [0, 1]
    assert active_ids(rows, "c") == {7}
    assert "a" not in rows


def test_another_request_under_the_same_id_starts_anew():
    rows = rows_of("a")
    rows.enter(["a"], {"a": "another object"}, lambda name: [9])
    assert active_ids(rows, "a") == {9}


def test_a_request_outside_the_batch_keeps_its_row_while_there_is_room():
    rows = rows_of("a", "b")
    living = dict.fromkeys("abcd", "object")
    rows.enter(["b", "c"], living, lambda name: [5])
    assert active_ids(rows, "a") == {0}
    rows.enter(["c", "d"], living, lambda name: [5])  # no free row: those outside the batch make room
    assert "a" not in rows
    assert "b" not in rows
    assert len(rows) == 2


def test_updates_read_only_the_rows_in_use():
    rows = rows_of("a", "b")
    assert rows.num_used == 2
    rows.keep_only({"b": "object"})
    assert rows.num_used == 2
    rows.keep_only({})
    assert rows.num_used == 0


def test_a_long_prompt_is_the_same_in_pieces():
    rows = RequestRows(VOCAB_SIZE, CAPACITY, 1)
    prompt = torch.randint(VOCAB_SIZE, (2 * PROMPT_CHUNK + 3,), generator=torch.Generator().manual_seed(1)).tolist()
    rows.admit("a", prompt)
    assert active_ids(rows, "a") == PlainRequest(None, None, prompt).lru.active_ids()


def test_ids_that_the_draft_cannot_say_are_not_pinned():
    rows = RequestRows(VOCAB_SIZE, 2, 1, torch.tensor([0, 13, 3, 5, 8]), D2T_IDS)
    rows.admit("a", [])
    assert active_ids(rows, "a") == {13, 5}  # the first that fit


def test_a_request_is_empty_until_it_has_an_id_that_the_draft_can_say():
    rows = RequestRows(VOCAB_SIZE, CAPACITY, 2, target_ids=D2T_IDS)
    rows.admit("a", [0, 3])
    rows.admit("b", [1])
    assert not rows.any_empty(["b"])
    assert rows.any_empty(["a", "b"])
    rows.observe(["a"], torch.tensor([[20]]), torch.empty(1, 0, 0))
    assert not rows.any_empty(["a", "b"])


def test_more_requests_than_rows_are_refused():
    rows = rows_of("a", max_requests=1)
    with pytest.raises(ValueError, match="at most 1 requests may hold a row, got one more: 'b'"):
        rows.admit("b", [])
    with pytest.raises(ValueError, match="request_id must be new, got 'a'"):
        rows.admit("a", [])
