"""Where the ids of a context-dependent vocabulary come from."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanospec import InContextVocab, Observation, SpeculativeDecoder
from nanospec.vocab.reduced import ReducedVocab
from nanospec.vocab.sources import IN_CONTEXT_SOURCES, TargetSuggestions, TextTokens, gather_candidates
from tests.tiny_pair import VOCAB_SIZE, tiny_drafter, tiny_target

WEIGHT = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SEEN = Observation(torch.tensor([[1, 2]]), torch.tensor([[[11, 12, 13], [21, 22, 23]]]), torch.tensor([[2, -1]]))


class LastFollower:
    """Proposes what followed; counts how often it was made to forget."""

    def __init__(self) -> None:
        self.num_resets = 0

    def candidates(self, observation: Observation) -> Tensor:
        return observation.next_ids

    def reset(self, rows: Tensor | None) -> None:
        self.num_resets += 1


class Shifted:
    """Ids beside those in the text, inside the vocabulary or not."""

    def __init__(self, by: int) -> None:
        self.by = by

    def candidates(self, observation: Observation) -> Tensor:
        return observation.token_ids + self.by


def active_ids(vocab: InContextVocab | ReducedVocab) -> set[int]:
    chosen = vocab.select()
    return set(chosen.draft_ids[0, : int(chosen.count)].tolist())


def test_text_outlives_first_choices_and_these_outlive_second_ones():
    assert gather_candidates(IN_CONTEXT_SOURCES, SEEN).tolist() == [[13, 23, 12, 22, 11, 21, 1, 2]]


@pytest.mark.parametrize(
    ("capacity", "kept"),
    [(2, {1, 2}), (4, {1, 2, 11, 21}), (6, {1, 2, 11, 21, 12, 22})],
)
def test_what_is_short_of_room_goes_in_that_order(capacity, kept):
    vocab = InContextVocab(WEIGHT, capacity)
    vocab.learn(SEEN)
    assert active_ids(vocab) == kept


def test_each_source_alone():
    text, suggestions = (
        InContextVocab(WEIGHT, 9, sources=[TextTokens()]),
        InContextVocab(WEIGHT, 9, sources=[TargetSuggestions()]),
    )
    for vocab in (text, suggestions):
        vocab.learn(SEEN)
    assert active_ids(text) == {1, 2}
    assert active_ids(suggestions) == {11, 12, 13, 21, 22, 23}


def test_a_source_of_ones_own_joins_the_others_and_is_reset_with_them():
    source = LastFollower()
    vocab = InContextVocab(WEIGHT, 9, sources=(TextTokens(), source))
    vocab.learn(SEEN._replace(next_ids=torch.tensor([[7, -1]])))
    assert active_ids(vocab) == {1, 2, 7}
    vocab.reset()
    assert (active_ids(vocab), source.num_resets) == (set(), 1)


def test_a_vocabulary_without_sources_is_refused():
    with pytest.raises(ValueError, match="sources must hold at least one CandidateSource, got none"):
        InContextVocab(WEIGHT, 9, sources=())


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ((TextTokens(), WEIGHT), r"objects with candidates\(observation\), got Tensor"),
        ((TextTokens,), "objects, got the class TextTokens"),
        (TextTokens(), "a tuple of CandidateSources, got TextTokens"),
    ],
)
def test_what_is_no_source_is_refused_when_the_vocabulary_is_made(sources, message):
    with pytest.raises(TypeError, match=message):
        InContextVocab(WEIGHT, 9, sources=sources)


class Returns:
    """Returns what it was given, whatever that is."""

    def __init__(self, value: object) -> None:
        self.value = value

    def candidates(self, observation: Observation) -> object:
        return self.value


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (torch.tensor([1, 2]), ValueError, r"got shape \(2,\)"),
        (torch.tensor([[1], [2]]), ValueError, r"got shape \(2, 1\)"),
        (torch.tensor([[1.0, 2.0]]), TypeError, r"got torch.float32 of shape \(1, 2\)"),
        (torch.tensor([[True]]), TypeError, "got torch.bool"),
        ([[1, 2]], TypeError, "got list"),
        (None, TypeError, "got NoneType"),
    ],
)
def test_a_source_that_returns_anything_but_ids_of_all_sequences_is_named(value, error, message):
    vocab = InContextVocab(WEIGHT, 9, sources=(TextTokens(), Returns(value)))
    with pytest.raises(error, match=rf"candidates of Returns must be int64 \[B, m\] with B = 1, {message}"):
        vocab.learn(SEEN)


def test_a_source_may_propose_nothing_or_ids_of_no_token():
    for value in (torch.empty(1, 0, dtype=torch.int64), torch.tensor([[-1, 30, -7, 2**40]])):
        vocab = InContextVocab(WEIGHT, 9, sources=(TextTokens(), Returns(value)))
        vocab.learn(SEEN)
        assert active_ids(vocab) == {1, 2}


def test_inside_a_reduced_vocabulary_sources_speak_of_the_targets_ids():
    ids = torch.tensor([2, 3, 12, 21, 29])
    vocab = ReducedVocab(InContextVocab(WEIGHT[:5], 5, sources=(TextTokens(), Shifted(1))), ids, 30)
    vocab.learn(SEEN)
    assert active_ids(vocab) == {2, 3}  # of 1, 2 and their neighbours 2, 3
    assert vocab.count_unsayable() == (4, 1)


@settings(max_examples=25)
@given(
    by=st.integers(-VOCAB_SIZE, VOCAB_SIZE),
    capacity=st.integers(2, 12),
    prompt=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=8),
)
def test_whatever_a_source_proposes_the_tokens_are_the_targets_own(by, capacity, prompt):
    target = tiny_target(1)
    vocab = InContextVocab(target.head_weight, capacity, sources=(Shifted(by),))
    decoder = SpeculativeDecoder(target, tiny_drafter(target, 2, std=0.02), vocab, (3, 2, 6))
    expected = decoder.generate_autoregressive(prompt, max_new_tokens=12, ignore_eos=True).token_ids
    assert decoder.generate(prompt, max_new_tokens=12, ignore_eos=True).token_ids == expected
