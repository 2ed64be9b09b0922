"""A base that grows and shrinks while a request runs: never another token, and the ids that the level says."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nanospec.vocab.adaptive as adaptive
from nanospec import InContextVocab, Observation, SpeculativeDecoder
from nanospec.request import Request
from nanospec.sampling import SamplingParams
from nanospec.step_graphs import FixedSteps
from nanospec.successor_prior import SuccessorPrior
from nanospec.vocab.adaptive import AdaptiveVocab, adaptive_part, policy_below
from nanospec.vocab.full import FullVocab
from nanospec.vocab.reduced import ReducedVocab
from nanospec.vocab.with_prior import PriorVocab
from nanospec.vocab_selector import build_reduced_vocab, build_vocab_selector
from tests.tiny_pair import VOCAB_SIZE, tiny_drafter, tiny_eagle3_drafter, tiny_eagle3_target, tiny_target

WEIGHT = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
RANKED = torch.arange(29, 9, -1)
FREQUENT = torch.randperm(VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
FREE, DEAR = 0.0, 10.0  # costs of a row, as shares of a step: all blocks pay, none does


class Jumping:
    """In place of `BaseSize`: any level after any step."""

    def __init__(self, most_blocks: int, row_cost: float, block_ids: int) -> None:
        self.most_blocks, self.num_blocks = most_blocks, most_blocks // 2
        self.random = random.Random(most_blocks)

    def observe(self, num_lacking: int, num_tokens: int) -> int:
        return self.random.randint(0, self.most_blocks)


@pytest.fixture
def any_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptive, "BaseSize", Jumping)
    monkeypatch.setenv("NANOSPEC_CHECKS", "1")  # of the vocabulary's state, after every step


def small(row_cost: float | None = None, packed: bool = True, **options) -> AdaptiveVocab:
    return AdaptiveVocab(InContextVocab(WEIGHT, 20, packed=packed, **options), RANKED, row_cost, block_ids=4)


def active_ids(vocab: AdaptiveVocab) -> set[int]:
    chosen = vocab.select()
    return set(chosen.draft_ids[0, : int(chosen.count)].tolist())


def seen(token_ids: list[int], next_ids: list[int]) -> Observation:
    ids = torch.tensor([token_ids])
    return Observation(ids, ids[..., None], torch.tensor([next_ids]))


def test_a_base_that_costs_nothing_is_held_and_leaves_half_the_capacity_to_the_context():
    assert active_ids(small(FREE)) == set(RANKED[:10].tolist())
    assert active_ids(small(DEAR)) == set()


def test_what_the_context_lacked_is_counted_whether_its_block_is_held_or_not():
    for vocab in (small(FREE), small(DEAR)):
        vocab.learn(seen([1, 2], [2, 29]))
        assert vocab.num_lacking.tolist() == [1]  # 29; 2 is not among the ranked ids
        vocab.learn(seen([29, 20, 7], [20, -1, -1]))
        assert vocab.num_lacking.tolist() == [1]  # 20, the last id that there is room for
        vocab.learn(seen([20, 29, 7], [29, 7, 3]))
        assert vocab.num_lacking.tolist() == [0]  # 29 was seen
        vocab.reset()
        vocab.learn(seen([1, 1], [29, 29]))
        assert vocab.num_lacking.tolist() == [2]


def test_blocks_come_and_go_and_what_the_text_used_stays(any_level):
    vocab = small()
    levels = set()
    for step in range(40):
        vocab.adapt(0, 1)
        levels.add(vocab.num_blocks)
        if step == 20:
            vocab.learn(seen([29, 21], [21, -1]))
        used = {29, 21} if step >= 20 else set()
        assert active_ids(vocab) == {*RANKED[:10][: 4 * vocab.num_blocks].tolist(), *used}
        chosen = vocab.select()
        assert torch.equal(chosen.rows[0, : int(chosen.count)], WEIGHT[chosen.draft_ids[0, : int(chosen.count)]])
    assert levels == {0, 1, 2, 3}
    vocab.reset()
    assert active_ids(vocab) == set(RANKED[:4].tolist())


def test_growth_is_told_as_an_upper_bound_of_new_rows():
    vocab = small(FREE)
    vocab._size.observe = lambda *_: 1
    assert vocab.adapt(0, 1) == 0
    vocab.learn(seen([RANKED[4].item()], [-1]))
    count = int(vocab.select().count)
    vocab._size.observe = lambda *_: 3
    assert vocab.adapt(0, 1) == 6  # of which one was there
    assert int(vocab.select().count) == count + 5


def test_rows_are_priced_by_the_loop_unless_the_caller_did():
    vocab, fixed = small(), small(FREE)
    for policy in (vocab, fixed):
        policy.price_rows(DEAR)
        policy.reset()
    assert (vocab.num_blocks, fixed.num_blocks) == (0, 3)


@pytest.mark.usefixtures("any_level")
@settings(max_examples=25)
@given(
    kind=st.sampled_from(("plain", "indexed", "prior", "reduced", "fixed steps", "fixed steps+prior")),
    capacity=st.integers(6, 40),
    seed=st.integers(0, 3),
    prompt=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=8),
    sampling=st.sampled_from([{}, {"temperature": 0.8, "seed": 3}]),
    wrong=st.booleans(),
)
def test_output_is_autoregressive_output_at_levels_that_jump(kind, capacity, seed, prompt, sampling, wrong):
    """wrong: the base holds ids that the target never says at all."""
    if kind == "reduced":
        target = tiny_eagle3_target(seed)
        drafter = tiny_eagle3_drafter(target, 2, num_rows=40)
    else:
        target = tiny_target(seed)
        drafter = tiny_drafter(target, 2, std=0.02)
    plain = SpeculativeDecoder(target, drafter, tree=(3, 3, 10), capacity=VOCAB_SIZE)
    expected = plain.generate_autoregressive(prompt, max_new_tokens=25, **sampling).token_ids
    ranked = torch.tensor([i for i in FREQUENT.tolist() if not wrong or i not in expected])
    vocab = _vocab_of(kind, target, drafter, capacity, ranked)
    decoder = plain.with_vocab(vocab)
    if kind.startswith("fixed steps"):
        loop, _ = decoder._speculate(Request(torch.tensor([prompt]), 25, SamplingParams(**sampling)), decoder.tree)
        loop.fixed_steps = FixedSteps(loop.decoding_step())
        tokens = [token for step in loop.steps() for token in step][:25]
    else:
        tokens = decoder.generate(prompt, max_new_tokens=25, **sampling).token_ids
    assert tokens == expected


def _vocab_of(kind: str, target, drafter, capacity: int, ranked: torch.Tensor):
    if kind == "reduced":
        ids = drafter.target_ids
        ranked = ranked[torch.isin(ranked, ids)]
        policy = ReducedVocab(InContextVocab(drafter.head.weight, capacity), ids, VOCAB_SIZE)
        return AdaptiveVocab(policy, ranked, block_ids=3)
    policy = AdaptiveVocab(InContextVocab(target.head_weight, capacity, packed=kind != "indexed"), ranked, block_ids=3)
    return PriorVocab(policy, SuccessorPrior(VOCAB_SIZE)) if kind.endswith("prior") else policy


@pytest.mark.usefixtures("any_level")
@pytest.mark.parametrize("with_prior", [False, True])
def test_compiled_trees_are_the_eager_ones_and_no_level_compiles_anew(with_prior):
    target, stats = tiny_target(4), []
    for compile in (False, "eager"):
        vocab = AdaptiveVocab(InContextVocab(target.head_weight, 40), FREQUENT, block_ids=3)
        policy = PriorVocab(vocab, SuccessorPrior(VOCAB_SIZE)) if with_prior else vocab
        decoder = SpeculativeDecoder(target, tiny_drafter(target, 2, std=0.02), policy, (2, 3, 7), compile=compile)
        decoder.generate([1, 2], max_new_tokens=6)
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        result = decoder.generate([1, 2, 3, 1, 2], max_new_tokens=40)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before
        stats.append((result.token_ids, result.stats.mean_accept_length))
    assert stats[0] == stats[1]


def test_a_step_of_fixed_shape_adapts_as_the_plain_loop_does():
    """The same levels, step by step, when the cost leaves the choice to the text."""
    target = tiny_target(4)
    levels = []
    for is_fixed in (False, True):
        vocab = AdaptiveVocab(InContextVocab(target.head_weight, 40), FREQUENT, row_cost=0.001, block_ids=3)
        decoder = SpeculativeDecoder(target, tiny_drafter(target, 2), vocab, (3, 3, 10))
        loop, _ = decoder.speculate(torch.tensor([[1, 2, 3]]), decoder.tree, 60)
        if is_fixed:
            loop.fixed_steps = FixedSteps(loop.decoding_step())
        levels.append([vocab.num_blocks for _ in loop.steps()])
    assert levels[0] == levels[1]
    assert len(set(levels[0])) > 1


def test_names_build_it_over_the_list_that_comes_with_the_draft():
    options = {"capacity": 20, "frequent_ids": RANKED}
    policy = build_vocab_selector("hybrid:auto+prior", WEIGHT, **options)
    assert policy.name == "hybrid-auto+prior"
    assert isinstance(adaptive_part(policy), AdaptiveVocab)
    assert isinstance(policy_below(policy), InContextVocab)
    ids = torch.tensor([1, 2, 12, 21, 29])
    reduced = build_reduced_vocab("hybrid:auto", WEIGHT[:5], ids, 30, 5, RANKED)
    assert active_ids(reduced) == {29, 21}
    assert build_reduced_vocab(reduced, WEIGHT[:5], ids, 30) is reduced
    with pytest.raises(ValueError, match="'hybrid:auto' needs a list of frequent ids"):
        build_vocab_selector("hybrid:auto", WEIGHT)


def few_rows() -> ReducedVocab:
    return ReducedVocab(InContextVocab(WEIGHT[:3], 3), torch.tensor([5, 26, 29]), 30)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: AdaptiveVocab(FullVocab(WEIGHT), RANKED), TypeError, "policy must be an InContextVocab, .* FullVocab"),
        (lambda: AdaptiveVocab(InContextVocab(WEIGHT, 9, 2), RANKED), ValueError, "of one sequence, got 2"),
        (
            lambda: AdaptiveVocab(InContextVocab(WEIGHT, 9, pinned_ids=RANKED[:2]), RANKED),
            ValueError,
            "must have no pinned ids, .* got 2",
        ),
        (lambda: AdaptiveVocab(InContextVocab(WEIGHT, 9), RANKED[:0]), ValueError, "ranked_ids must hold an id"),
        (lambda: AdaptiveVocab(InContextVocab(WEIGHT, 9), RANKED[None]), ValueError, r"1-D, got shape \(1, 20\)"),
        (lambda: AdaptiveVocab(InContextVocab(WEIGHT, 9), RANKED.double()), TypeError, "must be integers, got 29.0"),
        (lambda: AdaptiveVocab(InContextVocab(WEIGHT, 9), RANKED + 1), ValueError, "between 0 and 29, got 30"),
        (lambda: AdaptiveVocab(InContextVocab(WEIGHT, 9), RANKED - 30), ValueError, "between 0 and 29, got -1"),
        (lambda: AdaptiveVocab(InContextVocab(WEIGHT, 9), RANKED // 2), ValueError, "must be distinct, got 14"),
        (lambda: AdaptiveVocab(few_rows(), RANKED[:4]), ValueError, r"the draft can say, got \[28, 27\]"),
        (lambda: AdaptiveVocab(InContextVocab(WEIGHT, 1), RANKED), ValueError, "a capacity of 1 has room for"),
        (lambda: small(-1.0), ValueError, "row_cost must be at least 0 and finite, got -1.0"),
        (lambda: small().reset(torch.tensor([0])), NotImplementedError, "rows must be None with a base that adapts"),
    ],
)
def test_what_cannot_adapt_is_refused(call, error, text):
    with pytest.raises(error, match=text):
        call()
