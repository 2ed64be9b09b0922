"""Policies inside the vocabulary of a draft that scores only some ids."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanospec.gathered_head import GatheredHead
from nanospec.locality_tracker import LocalityTracker
from nanospec.records import DraftVocab, Observation
from nanospec.vocab.full import FullVocab
from nanospec.vocab.in_context import InContextVocab
from nanospec.vocab.reduced import ReducedVocab, head_positions
from nanospec.vocab_selector import VocabSelector, build_reduced_vocab

VOCAB_SIZE = 12
TARGET_IDS = torch.tensor([1, 2, 5, 8, 11])
WEIGHT = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def reduced(capacity: int = 4, packed: bool = True) -> ReducedVocab:
    return ReducedVocab(InContextVocab(WEIGHT, capacity, packed=packed), TARGET_IDS, VOCAB_SIZE)


def active_ids(vocab: ReducedVocab) -> list[int]:
    chosen = vocab.select()
    return sorted(chosen.draft_ids[0, : int(chosen.count)].tolist())


def test_positions_are_the_inverse_of_the_map() -> None:
    assert head_positions(torch.tensor([3, 0]), 4).tolist() == [1, -1, -1, 0, -1]


def test_ids_that_the_draft_cannot_say_take_no_place_and_are_counted() -> None:
    vocab = reduced()
    vocab.observe(torch.tensor([[5, 0, 3, 11, 3, -1, 2]]))
    assert active_ids(vocab) == [2, 5, 11]
    assert vocab.count_unsayable() == (6, 3)
    vocab.observe(torch.tensor([[12, 10, 8, 1]]))  # 12 is no id; room for four
    assert active_ids(vocab) == [1, 2, 8, 11]
    assert vocab.count_unsayable() == (9, 4)
    vocab.reset()
    assert active_ids(vocab) == []
    assert vocab.count_unsayable() == (0, 0)


@given(st.lists(st.lists(st.integers(-1, VOCAB_SIZE), min_size=1, max_size=9), max_size=6), st.integers(1, 5))
@settings(max_examples=60)
def test_it_is_the_policy_over_the_sayable_ids(observations: list[list[int]], capacity: int) -> None:
    vocab, plain = reduced(capacity), LocalityTracker(VOCAB_SIZE, capacity)
    for ids in observations:
        vocab.observe(torch.tensor([ids]))
        plain.observe(torch.tensor([[token_id if token_id in TARGET_IDS.tolist() else -1 for token_id in ids]]))
    assert active_ids(vocab) == sorted(plain.draft_ids[0, : int(plain.count)].tolist())


class OwnPolicy(torch.nn.Module):
    """Observes, and is none of the library's."""

    name, observes = "own", True

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.inner = InContextVocab(WEIGHT, capacity)

    def reset(self, rows: Tensor | None = None) -> None:
        self.inner.reset(rows)

    def learn(self, observation: Observation) -> None:
        self.inner.learn(observation)

    def select(self, width: int | None = None) -> DraftVocab:
        return self.inner.select(width)

    def columns(self, ids: Tensor) -> Tensor:
        return self.inner.columns(ids)


@given(st.lists(st.lists(st.integers(-1, VOCAB_SIZE - 1), min_size=3, max_size=3), max_size=4), st.integers(1, 5))
@settings(max_examples=30)
def test_a_policy_of_ones_own_learns_positions_and_drafts_the_ids_of_their_rows(texts, capacity) -> None:
    own, ours = ReducedVocab(OwnPolicy(capacity), TARGET_IDS, VOCAB_SIZE), reduced(capacity)
    for text in texts:
        tokens = torch.tensor([text])
        seen = Observation(tokens, torch.stack((tokens.flip(1), (tokens + 1).clamp(0, 11)), 2), tokens.roll(-1, 1))
        for vocab in (own, ours):
            vocab.learn(seen)
    assert own.select().draft_ids.tolist() == ours.select().draft_ids.tolist()
    assert own.columns(torch.arange(VOCAB_SIZE)[None]).tolist() == ours.columns(torch.arange(VOCAB_SIZE)[None]).tolist()
    assert own.count_unsayable() == ours.count_unsayable()
    own.reset()
    assert active_ids(own) == []


@pytest.mark.parametrize("packed", [True, False])
def test_logits_are_the_rows_of_the_drafts_own_head(packed: bool) -> None:
    vocab, head = reduced(packed=packed), GatheredHead(WEIGHT, torch.arange(5.0, dtype=torch.float64))
    vocab.observe(torch.tensor([[8, 7, 1]]))
    chosen, hidden = vocab.select(3), torch.randn(1, 2, 4, dtype=torch.float64)
    logits = head(hidden, chosen)
    assert set(chosen.draft_ids[0, :2].tolist()) == {8, 1}
    for column, token_id in enumerate(chosen.draft_ids[0, :2].tolist()):
        row = TARGET_IDS.tolist().index(token_id)
        torch.testing.assert_close(logits[0, :, column], hidden[0] @ WEIGHT[row] + row)
    assert logits[0, :, 2:].eq(-torch.inf).all()


def test_its_buffer_of_ids_keeps_its_address() -> None:
    vocab = reduced()
    address = vocab.select().draft_ids.data_ptr()
    vocab.observe(torch.tensor([[8, 7, 1]]))
    vocab.reset()
    assert vocab.select(2).draft_ids.data_ptr() == address


def test_ids_that_are_no_integers_are_refused() -> None:
    with pytest.raises(TypeError, match="token_ids must be integers, got torch.float32"):
        reduced().observe(torch.zeros(1, 2))


FREQUENT_IDS = torch.tensor([3, 5, 0, 11, 2])


def test_each_name_gives_its_policy_inside_the_drafts_vocabulary() -> None:
    table = [
        ("full", "full", TARGET_IDS.tolist(), (0, 0)),
        ("in-context", "in-context", [], (0, 0)),
        ("static:4", "static-2", [5, 11], (4, 2)),
    ]
    for spec, name, ids, counts in table:
        vocab = build_reduced_vocab(spec, WEIGHT, TARGET_IDS, VOCAB_SIZE, 4, FREQUENT_IDS)
        assert isinstance(vocab, VocabSelector)
        assert (vocab.name, active_ids(vocab), vocab.count_unsayable()) == (name, ids, counts)
        vocab.reset()
        assert (active_ids(vocab), vocab.count_unsayable()) == (ids, counts)
    built = reduced()
    assert build_reduced_vocab(built, WEIGHT, TARGET_IDS, VOCAB_SIZE) is built


def test_what_cannot_be_inside_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab 'static:1' must hold ids that the draft can say, got 1 others"):
        build_reduced_vocab("static:1", WEIGHT, TARGET_IDS, VOCAB_SIZE, 4, FREQUENT_IDS)
    with pytest.raises(ValueError, match="or a ReducedVocab, for a draft that scores 5 of 12 ids, got FullVocab"):
        build_reduced_vocab(FullVocab(WEIGHT), WEIGHT, TARGET_IDS, VOCAB_SIZE)
    with pytest.raises(TypeError, match=r"vocab must have vocabulary_views\(\), got FullVocab, which has none"):
        build_reduced_vocab("full", WEIGHT, TARGET_IDS, VOCAB_SIZE).vocabulary_views()
