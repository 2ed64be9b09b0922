"""Checks between steps, on request: sound states pass, each kind of damage is named."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec import InContextVocab, SpeculativeDecoder
from nanospec.invariants import StateError, check_vocabulary, checks_enabled
from nanospec.step_graphs import FixedSteps
from nanospec.vocab_selector import build_vocab_selector
from tests.tiny_pair import VOCAB_SIZE, tiny_drafter, tiny_target

WEIGHT = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
POLICIES = ("full", "static:20", "in-context", "hybrid:9", "in-context+prior")


def seen_vocabulary() -> InContextVocab:
    vocab = InContextVocab(WEIGHT, 6, batch_size=2, pinned_ids=torch.tensor([3]))
    vocab.observe(torch.tensor([[5, 7, 5, -1], [1, 2, 3, 4]]))
    return vocab


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(-2, 22), min_size=3, max_size=3), min_size=1, max_size=6), st.integers(1, 20))
def test_whatever_is_observed_the_state_is_sound(updates, capacity):
    vocab = InContextVocab(WEIGHT, capacity)
    for ids in updates:
        vocab.observe(torch.tensor([ids]))
        check_vocabulary(vocab)


def _put(name, place, value):
    def damage(vocab):
        getattr(vocab.tracker, name)[place] = value

    return damage


def _spoil_row(vocab):
    vocab.rows[1, 2] += 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_put("count", 0, 7), "count must be between 1 and 6 in sequence 0, got 7"),
        (_put("slot_token", (1, 2), 20), r"ids must lie in \[0, 20\) in sequence 1, got 1 to 20"),
        (_put("slot_token", (0, 0), 9), "first 1 slots must hold the pinned ids in sequence 0"),
        (_put("slot_token", (0, 2), 8), "id 8 must know its slot in sequence 0"),
        (_put("token_slot", (0, 11), 4), "3 ids must have a slot in sequence 0, got 4"),
        (_put("slot_seen", (1, 1), 99), "no id may be seen later than now, 4, in sequence 1"),
        (_spoil_row, "the row of id 2 must be the head's in sequence 1"),
    ],
)
def test_each_kind_of_damage_is_named(damage, message):
    vocab = seen_vocabulary()
    check_vocabulary(vocab)
    damage(vocab)
    with pytest.raises(StateError, match=message):
        check_vocabulary(vocab)


def test_damage_inside_a_prior_or_a_reduced_vocabulary_is_found():
    vocab = build_vocab_selector("in-context+prior", WEIGHT, capacity=6)
    vocab.prior.strength[0, 3, 0] = float("nan")
    with pytest.raises(StateError, match="'in-context.prior': strengths of the prior must be finite"):
        check_vocabulary(vocab)


@pytest.mark.parametrize("is_fixed", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_decoding_checks_after_every_step_when_asked_to(policy, is_fixed, monkeypatch):
    target = tiny_target(1)
    drafter = tiny_drafter(target, 2, std=0.02)
    decoder = SpeculativeDecoder(target, drafter, policy, (3, 3, 8), frequent_ids=torch.arange(VOCAB_SIZE))
    calls = []

    def counted(vocab):
        calls.append(vocab)
        check_vocabulary(vocab)

    monkeypatch.setattr("nanospec.speculation.check_vocabulary", counted)
    for value, expected in (("0", 0), ("1", 1)):
        monkeypatch.setenv("NANOSPEC_CHECKS", value)
        assert checks_enabled() == bool(expected)
        loop, stats = decoder.speculate(torch.tensor([[5, 6, 5]]), decoder.tree, 12)
        if is_fixed:
            loop.fixed_steps = FixedSteps(loop.decoding_step())
        list(loop.steps())
        assert len(calls) == expected * stats.steps


def test_a_batch_checks_every_row_after_every_step(monkeypatch):
    target = tiny_target(1)
    decoder = SpeculativeDecoder(target, tiny_drafter(target, 2, std=0.02), "in-context+prior", (3, 3, 8))
    monkeypatch.setenv("NANOSPEC_CHECKS", "1")
    calls = []

    def counted(vocab):
        calls.append(vocab)
        check_vocabulary(vocab)

    monkeypatch.setattr("nanospec.speculation.check_vocabulary", counted)
    results = dict(decoder.generate_many([[5, 6, 5], [7], [8, 9]], max_batch=2, max_new_tokens=9))
    assert len(calls) == sum(result.stats.steps for result in results.values()) > 0

    engine = decoder.batch_engine(2)
    for prompt in ([5, 6, 5], [7]):
        engine.submit(prompt, max_new_tokens=20)
    engine.step()
    engine._rows.vocab.prior.strength[1] = float("nan")
    with (
        pytest.warns(RuntimeWarning, match="no active id a finite score"),
        pytest.raises(StateError, match="strengths of the prior must be finite"),
    ):
        engine.step()
