"""The prior on draft scores: what it learns, where its bonus goes, and that it never changes an output."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec import SpeculativeDecoder, TreeShape
from nanospec.records import DraftTree, Verdict
from nanospec.static_tree import StaticTree
from nanospec.step_outcome import tokens_after_nodes, tokens_after_path
from nanospec.successor_prior import SuccessorPrior
from nanospec.vocab.full import FullVocab
from nanospec.vocab.in_context import InContextVocab
from nanospec.vocab.static import StaticVocab
from nanospec.vocab.with_prior import PriorVocab
from tests.tiny_pair import VOCAB_SIZE, tiny_drafter, tiny_target

FREQUENT = torch.randperm(VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
POLICIES = ("full+prior", "in-context+prior", "static:20+prior", "hybrid:9+prior", "hybrid:9")


def learned() -> SuccessorPrior:
    """Text 3 4 3 5; after 3 the target would have said 4, 5, 6, then 6, 4, 5."""
    prior = SuccessorPrior(vocab_size=9, scale=2.0)
    top_ids = torch.tensor([[[4, 5, 6], [3, 3, 3], [6, 4, 5]]])
    prior.observe(torch.tensor([[3, 4, 3]]), top_ids, torch.tensor([[4, 3, 5]]))
    return prior


def entries(prior: SuccessorPrior, token: int) -> dict[int, float]:
    ids, bonus = (x[0, 0].tolist() for x in prior.bonus(torch.tensor([[token]])))
    return {token_id: round(amount, 6) for token_id, amount in zip(ids, bonus, strict=True) if amount > 0}


def test_recent_successors_weigh_most_and_ranks_count():
    prior = learned()
    # The last occurrence: 5 followed (1), the target's choices 6 (1), 4 (0.6), 5 (0.4). The one before, weakened to
    # 0.8: 4 followed (0.8), which beats its 0.6. Times the scale.
    assert entries(prior, 3) == {5: 2.0, 6: 2.0, 4: 1.6}
    assert entries(prior, 4) == {3: 2.0}
    assert entries(prior, 8) == entries(prior, -1) == entries(prior, 99) == {}
    prior.reset()
    assert entries(prior, 3) == {}


@pytest.mark.parametrize("kind", ["full", "static", "hybrid"])
def test_the_bonus_goes_to_the_columns_of_the_ids_and_nowhere_else(kind):
    weight = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    policies = {
        "full": FullVocab(weight),
        "static": StaticVocab(weight, torch.tensor([7, 5, 3, 0])),
        "hybrid": InContextVocab(weight, 6, pinned_ids=torch.tensor([6])),
    }
    vocab = PriorVocab(policies[kind], learned())
    if isinstance(policies[kind], InContextVocab):
        policies[kind].observe(torch.tensor([[1, 5, 2]]))
    chosen = vocab.select()
    logits = torch.zeros(1, 1, chosen.draft_ids.shape[1], dtype=torch.float64)
    raised = chosen.raise_scores(logits, torch.tensor([[3]]))[0, 0]
    count = int(chosen.count)
    expected = {5: 2.0, 6: 2.0, 4: 1.6}
    for column, token_id in enumerate(chosen.draft_ids[0, :count].tolist()):
        assert raised[column].item() == pytest.approx(expected.get(token_id, 0.0))
    assert not raised[count:].any()


@settings(max_examples=60)
@given(
    policy=st.sampled_from(POLICIES),
    seed=st.integers(0, 3),
    prompt=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=12),
    max_new_tokens=st.integers(1, 40),
    draft_temperature=st.sampled_from([None, 0.2, 3.0]),
    sampling=st.sampled_from([{}, {"temperature": 1.0, "seed": 1}, {"temperature": 0.7, "repetition_penalty": 1.3}]),
)
def test_output_is_autoregressive_output(policy, seed, prompt, max_new_tokens, draft_temperature, sampling):
    sampling = {"seed": 7, **sampling}
    target = tiny_target(seed)
    decoder = SpeculativeDecoder(
        target,
        tiny_drafter(target, 2, std=0.02),
        policy,
        TreeShape(3, 3, 10),
        capacity=30,
        frequent_ids=FREQUENT,
        draft_temperature=draft_temperature,
    )
    plain = decoder.generate_autoregressive(prompt, max_new_tokens=max_new_tokens, **sampling)
    assert decoder.generate(prompt, max_new_tokens=max_new_tokens, **sampling).token_ids == plain.token_ids


@pytest.mark.parametrize("policy", ["full+prior", "in-context+prior", "static:20+prior"])
def test_compiled_trees_are_the_eager_ones(policy):
    target = tiny_target(4)
    options = {"tree": TreeShape(3, 3, 10), "capacity": 30, "frequent_ids": FREQUENT}
    eager = SpeculativeDecoder(target, tiny_drafter(target, 2, std=0.02), policy, **options)
    compiled = SpeculativeDecoder(target, tiny_drafter(target, 2, std=0.02), policy, compile="eager", **options)
    expected = eager.generate([1, 2, 3, 1, 2], max_new_tokens=30)
    result = compiled.generate([1, 2, 3, 1, 2], max_new_tokens=30)
    assert result.token_ids == expected.token_ids
    assert result.stats.mean_accept_length == expected.stats.mean_accept_length


def test_a_prior_can_make_a_drafter_right():
    """A drafter of constant scores learns the cycle of a target that repeats itself."""
    target = tiny_target(4)
    drafter = tiny_drafter(target, 2, std=0.0)
    with torch.no_grad():
        for parameter in drafter.parameters():
            parameter.zero_()
    options = {"tree": TreeShape(3, 3, 10), "capacity": VOCAB_SIZE}
    prompt = [5, 8, 13] * 6
    without = SpeculativeDecoder(target, drafter, "full", **options).generate(prompt, max_new_tokens=60)
    with_prior = SpeculativeDecoder(target, drafter, "full+prior", **options).generate(prompt, max_new_tokens=60)
    assert with_prior.token_ids == without.token_ids
    assert with_prior.stats.mean_accept_length > without.stats.mean_accept_length + 0.3


def test_what_follows_accepted_nodes_is_known_of_no_other():
    tree = DraftTree(torch.tensor([[7, 8, 9, 6]]), *[torch.zeros(1, 4)] * 4)
    verdict = Verdict(torch.tensor([[0, 2, 0]]), torch.tensor([2]), torch.tensor([5]))
    following = tokens_after_path(tree, verdict)
    assert following.tolist() == [[9, 5, 5]]
    assert tokens_after_nodes(tree, verdict, following).tolist() == [[9, -1, 5, -1]]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: SuccessorPrior(0), ValueError, "vocab_size and batch_size must be at least 1, got 0 and 1"),
        (lambda: SuccessorPrior(5, scale=-1.0), ValueError, "scale must be at least 0, got -1.0"),
        (lambda: learned().observe(torch.zeros(2, 1), torch.zeros(2, 1, 3)), ValueError, "token_ids must be"),
    ],
)
def test_bad_arguments_are_named(call, error, text):
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (True, TypeError), ("1", TypeError)])
def test_a_bad_draft_temperature_is_named(value, error):
    target = tiny_target(4)
    with pytest.raises(error, match="draft_temperature must be"):
        SpeculativeDecoder(target, tiny_drafter(target, 2), draft_temperature=value)


def test_a_token_outside_the_vocabulary_raises_nothing():
    weight = torch.randn(9, 4, dtype=torch.float64)
    prior = learned()
    prior.observe(torch.tensor([[2]]), torch.tensor([[[-1, 12, 4]]]), torch.tensor([[-1]]))
    vocab = PriorVocab(InContextVocab(weight, 6), prior)
    logits = torch.zeros(1, 3, 6, dtype=torch.float64)
    assert torch.equal(vocab.raise_scores(logits, torch.tensor([[-1, 9, 99]])), logits)
    assert entries(prior, 2) == {4: 0.8}


def test_a_static_tree_weighs_the_prior_at_the_draft_temperature():
    target = tiny_target(4)
    tree, prompt = StaticTree(((0,), (1,), (0, 0), (0, 1), (1, 0))), [5, 8, 13] * 6
    passes = set()
    for temperature in (0.05, 20.0):
        decoder = SpeculativeDecoder(
            target, tiny_drafter(target, 2, std=0.02), "full+prior", tree, draft_temperature=temperature
        )
        result = decoder.generate(prompt, max_new_tokens=60)
        assert result.token_ids == decoder.generate_autoregressive(prompt, max_new_tokens=60).token_ids
        passes.add(result.stats.target_passes)
    assert len(passes) == 2, "the prior decides all at a high temperature and nothing at a low one"


def test_a_policy_over_another_head_is_refused():
    target = tiny_target(4)
    other = InContextVocab(torch.randn_like(target.head_weight), 20)
    for vocab in (other, PriorVocab(other, SuccessorPrior(VOCAB_SIZE))):
        with pytest.raises(ValueError, match=r"over the head .*, the same tensor .*: decoder.target.head_weight"):
            SpeculativeDecoder(target, tiny_drafter(target, 2), vocab)
    decoder = SpeculativeDecoder(target, tiny_drafter(target, 2))
    decoder.with_vocab(InContextVocab(decoder.target.head_weight, 20))
