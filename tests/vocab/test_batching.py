"""The sequences of a batch: what one policy per sequence would know, whoever comes, goes or moves."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanospec.records import DraftVocab, Observation
from nanospec.successor_prior import SuccessorPrior
from nanospec.vocab.adaptive import AdaptiveVocab
from nanospec.vocab.batching import copy_sequence, for_batch, sequences
from nanospec.vocab.full import FullVocab
from nanospec.vocab.in_context import InContextVocab
from nanospec.vocab.reduced import ReducedVocab
from nanospec.vocab.routed import RoutedVocab
from nanospec.vocab.sources import TextTokens
from nanospec.vocab.with_prior import PriorVocab
from nanospec.vocab_selector import build_reduced_vocab, build_vocab_selector
from tests.tiny_router import tiny_router

VOCAB_SIZE, CAPACITY, NUM_ROWS, NUM_SEQUENCES = 20, 9, 14, 3
WEIGHT = torch.randn(VOCAB_SIZE, 4, generator=torch.Generator().manual_seed(0))
FREQUENT = torch.arange(VOCAB_SIZE).flip(0)
KINDS = ("in-context", "context-only", "hybrid:3", "in-context+prior", "static:5+prior", "static:5")


def make(kind: str, is_reduced: bool):
    if is_reduced:
        ids = torch.arange(VOCAB_SIZE)[-NUM_ROWS:]
        return build_reduced_vocab(kind, WEIGHT[:NUM_ROWS], ids, VOCAB_SIZE, CAPACITY, FREQUENT)
    return build_vocab_selector(kind, WEIGHT, CAPACITY, frequent_ids=FREQUENT)


def observation(generator: torch.Generator, batch: int) -> Observation:
    token_ids, next_ids = torch.randint(-1, VOCAB_SIZE, (2, batch, 3), generator=generator)
    return Observation(token_ids, torch.randint(VOCAB_SIZE, (batch, 3, 2), generator=generator), next_ids)


def same(found: DraftVocab, row: int, expected: DraftVocab) -> bool:
    """Whether row `row` holds the ids, the rows and the prior of a policy of one sequence."""
    at = row if found.draft_ids.shape[0] > 1 else 0
    count = int(expected.count)
    checks = [int(found.count[at]) == count, torch.equal(found.draft_ids[at, :count], expected.draft_ids[0, :count])]
    if expected.rows is not None:
        checks.append(torch.equal(found.rows[at, :count], expected.rows[0, :count]))
    if expected.raise_scores is not None:
        tokens = torch.arange(VOCAB_SIZE)[None]
        zeros = torch.zeros(1, VOCAB_SIZE, found.draft_ids.shape[1])
        batch = torch.zeros(NUM_SEQUENCES, *zeros.shape[1:])
        raised = found.raise_scores(batch, tokens.expand(NUM_SEQUENCES, -1))[row]
        checks.append(torch.equal(raised[:, :count], expected.raise_scores(zeros, tokens)[0, :, :count]))
    return all(checks)


@settings(max_examples=40)
@given(st.sampled_from(KINDS), st.booleans(), st.integers(0, 999), st.data())
def test_a_batch_knows_what_a_policy_for_every_sequence_knows(kind, is_reduced, seed, data):
    policy = make(kind, is_reduced)
    batch, alone = for_batch(policy, NUM_SEQUENCES), [make(kind, is_reduced) for _ in range(NUM_SEQUENCES)]
    assert batch.name == policy.name
    generator = torch.Generator().manual_seed(seed)
    actions = st.lists(st.sampled_from(["learn", "reset", "copy", "part"]), min_size=1, max_size=6)
    for action in ["learn", *data.draw(actions)]:
        row, other = data.draw(st.integers(0, NUM_SEQUENCES - 1)), data.draw(st.integers(0, NUM_SEQUENCES - 1))
        if action == "reset":
            sequences(batch, row, row + 1).reset()
            alone[row].reset()
        elif action == "copy":
            copy_sequence(batch, row, other)
            alone[other] = copy.deepcopy(alone[row])
        else:
            stop = NUM_SEQUENCES if action == "learn" else row + 1
            seen = observation(generator, stop)
            sequences(batch, 0, stop).learn(seen)
            for place in range(stop):
                alone[place].learn(Observation(*(field[place : place + 1] for field in seen)))
    assert all(same(batch.select(), row, alone[row].select()) for row in range(NUM_SEQUENCES))


def test_a_policy_without_memory_serves_all_sequences_as_it_is():
    policy = FullVocab(WEIGHT)
    assert for_batch(policy, 5) is sequences(policy, 1, 3) is policy


@pytest.mark.parametrize(
    "wrap", [lambda policy: policy, lambda policy: ReducedVocab(policy, torch.arange(VOCAB_SIZE), VOCAB_SIZE)]
)
def test_a_routed_policy_and_its_copy_for_a_batch_draft_levels_of_their_own(wrap):
    routed = wrap(RoutedVocab(WEIGHT, tiny_router(WEIGHT, 3), (9, 6)))
    policy = PriorVocab(routed, SuccessorPrior(VOCAB_SIZE))
    batch, all_ids = for_batch(policy, 3), torch.arange(VOCAB_SIZE)
    states = torch.randn(3, 2, WEIGHT.shape[1], generator=torch.Generator().manual_seed(1), dtype=WEIGHT.dtype)
    policy.select().at_level(states[:1], 0)
    columns = policy.columns(all_ids[None])
    batch.select().at_level(-states, 1)
    assert torch.equal(policy.columns(all_ids[None]), columns)
    assert not torch.equal(batch.columns(all_ids.expand(3, -1))[:1], columns)
    assert sequences(batch, 0, 2).policy is batch.policy


class Remembers(TextTokens):
    def reset(self, rows: Tensor | None) -> None: ...


class WithoutSuggestions(InContextVocab):
    def learn(self, observation: Observation) -> None:
        self.observe(observation.token_ids)


class HasConstructor(WithoutSuggestions):
    def __init__(self) -> None:
        super().__init__(WEIGHT, CAPACITY)


def test_a_subclass_keeps_what_it_overrides_in_a_batch_or_is_refused_by_name():
    alone, batch = WithoutSuggestions(WEIGHT, CAPACITY), for_batch(WithoutSuggestions(WEIGHT, CAPACITY), 2)
    seen = observation(torch.Generator().manual_seed(1), 2)
    alone.learn(Observation(*(field[1:] for field in seen)))
    batch.learn(seen)
    assert same(batch.select(), 1, alone.select())
    with pytest.raises(NotImplementedError, match="a for_batch of its own in a batch, .* got HasConstructor"):
        for_batch(HasConstructor(), 2)


class Observes:
    name, observes = "mine", True


def test_what_cannot_serve_a_batch_is_refused_by_name():
    with pytest.raises(NotImplementedError, match="sources must have no memory in a batch, got Remembers"):
        for_batch(InContextVocab(WEIGHT, CAPACITY, sources=(Remembers(),)), 2)
    with pytest.raises(NotImplementedError, match="keep_between_requests must be 0 in a batch, got 3"):
        for_batch(InContextVocab(WEIGHT, CAPACITY, keep_between_requests=3), 2)
    adaptive = AdaptiveVocab(InContextVocab(WEIGHT, CAPACITY), FREQUENT)
    with pytest.raises(TypeError, match="vocab must have for_batch, .* in a batch, got AdaptiveVocab"):
        for_batch(adaptive, 2)
    with pytest.raises(TypeError, match="vocab must have for_batch, .* in a batch, got Observes"):
        for_batch(Observes(), 2)
