from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec.coverage.measure import Timer, WantedIds, accept_length, first_choices, measure_context
from nanospec.coverage.policy import BASELINE, Policy, PolicyProbe, list_policies
from nanospec.coverage.shared_pass import shared_contexts
from nanospec.decode import SpeculativeDecoder
from nanospec.drafters.prompt_lookup import PromptLookupDrafter
from nanospec.records import DraftTree, DraftVocab
from nanospec.sampling import SamplingParams
from nanospec.target import Target
from nanospec.tree_layout import tree_layout
from nanospec.tree_shape import TreeShape
from tests.test_decode_drafters_on_families import build_drafter
from tests.tiny_families import MIXED, family_model
from tests.tiny_mtp import tiny_mtp
from tests.tiny_pair import VOCAB_SIZE, tiny_drafter, tiny_eagle3_drafter, tiny_eagle3_target, tiny_target

TREE = TreeShape(4, 6, 40)
NUM_TOP = 4
SPECS = (
    "full", "static:9", "static:9+prior", "context-only", "in-context", "in-context,num_top=1",
    "in-context,capacity=12", "hybrid:9+prior", "hybrid:auto", "in-context,temperature=1",
)  # fmt: skip
FREQUENT_IDS = torch.randperm(VOCAB_SIZE, generator=torch.Generator().manual_seed(9))[:20]


def build_decoder(seed: int = 0) -> SpeculativeDecoder:
    target = tiny_target(seed)
    drafter = tiny_drafter(target, seed + 1, std=0.02)
    return SpeculativeDecoder(target, drafter, "full", TREE, num_top=NUM_TOP, frequent_ids=FREQUENT_IDS)


@pytest.fixture(scope="module")
def decoder():
    return build_decoder()


def text_of(seed: int, length: int) -> torch.Tensor:
    return torch.randint(VOCAB_SIZE, (1, length), generator=torch.Generator().manual_seed(seed))


def measure(decoder, specs, text, cuts, sampling=None, timer=None):
    """{cut: (context, [Measurement of every policy])}"""
    sampling = sampling or SamplingParams()
    probes = [PolicyProbe(decoder, policy, 0.5 if sampling.is_greedy else 1.0) for policy in list_policies(specs)]
    contexts = shared_contexts(decoder.target, text, cuts, decoder.tree, NUM_TOP, sampling)
    return {
        cut: (context, measure_context(decoder.target, decoder.drafter, context, decoder.tree, probes, timer).policies)
        for cut, context in contexts
    }


def first_step(decoder, policy: Policy, text, temperature: float, seed: int | None) -> list[int]:
    """Tokens of the first speculative step of the decoder itself, after the prompt pass."""
    row = decoder.with_vocab(policy.vocab, num_top=policy.num_top, capacity=policy.capacity)
    row.draft_temperature = policy.temperature
    settings = {"max_new_tokens": TREE.depth + 2, "ignore_eos": True, "temperature": temperature, "seed": seed}
    return [piece.token_ids for piece in row.stream(text, **settings)][1]


@settings(max_examples=6)
@given(seed=st.integers(0, 99), length=st.integers(12, 40), is_sampled=st.booleans())
def test_accept_length_is_that_of_the_decoders_own_first_step(seed, length, is_sampled):
    decoder, text = build_decoder(seed), text_of(seed, length)
    sampling = SamplingParams(temperature=1.0, seed=seed) if is_sampled else SamplingParams()
    measured = measure(decoder, SPECS, text, [length, 3], sampling)
    for cut, (context, policies) in measured.items():
        for policy, measurement in zip(list_policies(SPECS), policies, strict=True):
            own = first_step(decoder, policy, text[:, :cut], sampling.temperature, seed + cut if is_sampled else None)
            assert measurement.accept == len(own), policy.name
            assert own[: TREE.depth] == context.continuation[: len(own)].tolist(), policy.name


def test_a_context_is_the_same_whether_its_prompt_pass_is_shared_or_its_own(decoder):
    text = text_of(1, 30)
    together = measure(decoder, SPECS, text, [9, 17, 30])
    for cut, (_, policies) in together.items():
        assert measure(decoder, SPECS, text[:, :cut], [cut])[cut][1] == policies


def test_coverage_and_recall_equal_a_count_in_plain_python(decoder):
    text = text_of(2, 25)
    (context, policies) = measure(decoder, ["static:9"], text, [25])[25]
    listed = set(FREQUENT_IDS[:9].tolist())
    tree = SpeculativeDecoder(decoder.target, decoder.drafter, "full", TREE, draft_temperature=1.0)
    drafted = []
    loop, _ = tree.speculate(text, TREE, TREE.depth + 2)
    loop.on_verdict = lambda tree, verdict, accepted: drafted.append(tree)
    steps = loop.steps()
    next(steps), next(steps)
    static = policies[1]
    nodes = drafted[0].token_ids[0, 1:].tolist()
    assert static.covered == [int(token in listed) for token in context.continuation.tolist()]
    assert static.held_top1 == [int(token in listed) for token in first_choices(drafted[0])]
    assert (static.held_nodes, static.num_nodes) == (sum(token in listed for token in nodes), len(nodes))
    assert static.rows == 9


def test_the_full_vocabulary_covers_everything_and_a_useless_list_nothing(decoder):
    text = text_of(3, 20)
    context, _ = measure(decoder, [], text, [20])[20]
    useless = torch.tensor(sorted(set(range(VOCAB_SIZE)) - set(context.continuation.tolist())))
    other = SpeculativeDecoder(decoder.target, decoder.drafter, "full", TREE, frequent_ids=useless)
    probes = [PolicyProbe(other, policy, 0.5) for policy in list_policies(["static:9"])]
    full, none = measure_context(decoder.target, decoder.drafter, context, TREE, probes).policies
    assert full.covered == [1] * TREE.depth
    assert full.held_nodes == full.num_nodes == TREE.num_nodes - 1
    assert none.covered == [0] * TREE.depth
    assert none.accept == 1


def test_a_draft_that_lacks_ids_is_measured_in_ids_of_the_target():
    target = tiny_eagle3_target(5)
    drafter = tiny_eagle3_drafter(target, 6, num_rows=40)
    decoder = SpeculativeDecoder(target, drafter, "full", TREE, num_top=NUM_TOP)
    text = text_of(4, 24)
    for cut, (context, policies) in measure(decoder, ["full", "in-context"], text, [24, 11]).items():
        sayable = set(drafter.target_ids.tolist())
        assert policies[0].covered == [int(token in sayable) for token in context.continuation.tolist()]
        for policy, measurement in zip(list_policies(["full", "in-context"]), policies, strict=True):
            assert measurement.accept == len(first_step(decoder, policy, text[:, :cut], 0.0, None))


@pytest.mark.parametrize("kind", ["medusa", "causal-lm", "joined", "mtp"])
def test_every_kind_of_drafter_drafts_here_as_in_decoding(kind):
    if kind == "mtp":
        target, drafter = tiny_mtp("glm4_moe", 3)
    else:  # a target with sliding windows
        target = Target(family_model("gemma2", num_hidden_layers=9, layer_types=MIXED * 3))
        drafter = build_drafter(kind, target, "gemma2")
    decoder = SpeculativeDecoder(target, drafter, "full", TreeShape(3, 3, 9), num_top=NUM_TOP)
    text = torch.randint(target.vocab_size, (1, 24), generator=torch.Generator().manual_seed(7))
    specs = ["in-context,capacity=12", "in-context+prior"]
    for cut, (_, policies) in measure(decoder, specs, text, [24, 9, 10]).items():
        for policy, measurement in zip(list_policies(specs), policies, strict=True):
            assert measurement.accept == len(first_step(decoder, policy, text[:, :cut], 0.0, None)), policy.name


def test_timing_changes_nothing_but_the_times(decoder):
    text = text_of(5, 8)  # shorter than a tree
    plain = measure(decoder, SPECS, text, [8])[8][1]
    timed = measure(decoder, SPECS, text, [8], timer=Timer(torch.device("cpu")))[8][1]
    assert [m._replace(draft_ms=None, learn_ms=None) for m in timed] == plain
    assert all(m.draft_ms > 0 and m.learn_ms >= 0 for m in timed)


def test_a_hand_made_tree_accepts_the_continuation_as_far_as_it_goes():
    #        0
    #     5     7
    #   6     9   8
    parents = torch.tensor([[0, 0, 0, 1, 2, 2]])
    mask, depth = tree_layout(parents, 2)
    score = torch.tensor([[0.0, -2.0, -1.0, -3.0, -1.5, -4.0]])
    tree = DraftTree(torch.tensor([[3, 5, 7, 6, 9, 8]]), parents, depth, score, mask)
    assert [accept_length(tree, torch.tensor(own)) for own in ([7, 8], [7, 6], [6, 9], [5, 6])] == [3, 2, 1, 3]
    assert first_choices(tree) == [7, 9]


def test_where_levels_have_their_own_vocabulary_each_id_is_looked_for_at_its_level():
    parents = torch.tensor([[0, 0, 0, 1]])
    mask, depth = tree_layout(parents, 2)
    tree = DraftTree(torch.tensor([[3, 5, 7, 6]]), parents, depth, torch.tensor([[0.0, -1.0, -2.0, -3.0]]), mask)
    wanted = WantedIds.of(torch.tensor([7, 5]), tree)

    def vocab(*ids):
        return DraftVocab(torch.tensor([[*ids, 6]]), torch.tensor([len(ids)]), None)  # the last column is not in use

    assert wanted.held_by([vocab(7, 6), vocab(5)], 9) == ([1, 1], [0, 0], 1, 3)
    assert wanted.held_by([vocab(5), vocab(7, 6)], 9) == ([0, 0], [1, 1], 2, 3)
    assert wanted.held_by([vocab(5)], 9) == ([0, 1], [1, 0], 1, 3)


def test_cuts_too_near_the_context_window_are_refused(decoder):
    last = decoder.target.context_window - TREE.depth - 2
    text = text_of(6, decoder.target.context_window)
    with pytest.raises(ValueError, match=rf"cuts must lie in \[1, {last}\], got \[{last + 1}\]"):
        next(shared_contexts(decoder.target, text, [last + 1], TREE, 1, SamplingParams()))
    with pytest.raises(ValueError, match="cuts must lie in"):
        next(shared_contexts(decoder.target, text, [], TREE, 1, SamplingParams()))


def test_a_drafter_without_scores_is_refused(decoder):
    lookup = SpeculativeDecoder(decoder.target, PromptLookupDrafter(decoder.target.device), "full", TREE)
    with pytest.raises(NotImplementedError, match="draft must score ids"):
        PolicyProbe(lookup, BASELINE, 0.5)
