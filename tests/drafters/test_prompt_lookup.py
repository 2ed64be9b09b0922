"""Prompt lookup against plain Python over lists, alone and joined with a model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import nanospec.step_graphs as step_graphs
from nanospec import SpeculativeDecoder, TreeShape
from nanospec.drafters import CausalLMDrafter, Drafter, JoinedDrafter, PromptLookupDrafter
from nanospec.drafters.drafter import FixedShapeDrafter
from nanospec.drafters.prompt_lookup import lookup_chains, tree_of_chains
from nanospec.static_tree import StaticTree
from nanospec.target import Target
from tests.drafters.test_joined_tree import assert_valid, paths
from tests.test_decoding_step import Waits, fixed_loop
from tests.test_tree_drafter import TableDrafter
from tests.tiny_language_models import noisy_copy, tiny_language_model
from tests.tiny_pair import VOCAB_SIZE, tiny_drafter, tiny_eagle3_drafter, tiny_eagle3_target, tiny_target

FREQUENT = torch.randperm(VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
TWO_CHAINS, WIDE = TreeShape(4, 2, 8), TreeShape(3, 3, 10)
TEXTS = st.integers(1, 14).flatmap(lambda size: st.lists(st.integers(0, 1), min_size=size, max_size=size))


def plain_chains(text: list[int], num_chains: int, num_tokens: int, longest: int, shortest: int) -> list[list[int]]:
    """Occurrences of the last n tokens, n from longest to shortest, the most recent first, and what follows each."""
    ends: list[int] = []
    for size in range(min(longest, len(text) - 1), shortest - 1, -1):
        for end in range(len(text) - 1, size - 1, -1):
            if text[end - size : end] == text[len(text) - size :] and end not in ends:
                ends.append(end)
    chains = []
    for end in ends[:num_chains]:
        periodic = text[end:] * num_tokens
        chains.append(periodic[:num_tokens])
    return chains


@settings(max_examples=120)
@given(TEXTS, st.integers(1, 4), st.integers(1, 5), st.sampled_from([1, 1, 2, 3]), st.integers(0, 2), st.integers(0, 4))
def test_chains_are_those_of_plain_python(text, num_chains, num_tokens, shortest, more, num_rubbish):
    history = torch.tensor([*text, *text[-3:], *[0] * num_rubbish])  # what lies behind the text would match
    length, longest = torch.tensor([len(text)]), shortest + more
    chains = lookup_chains(history, length, num_chains, num_tokens, longest, shortest)
    expected = plain_chains(text, num_chains, num_tokens, longest, shortest)
    expected += [[-1] * num_tokens] * (num_chains - len(expected))
    assert chains.tolist() == expected


def test_the_longest_match_comes_first_then_the_most_recent():
    history, length = torch.tensor([1, 2, 3, 9, 2, 4, 1, 2]), torch.tensor([8])
    chains = lookup_chains(history, length, 3, 4, longest=3, shortest=1)
    assert chains.tolist() == [[3, 9, 2, 4], [4, 1, 2, 4], [-1] * 4]
    assert lookup_chains(history, length, 1, 2, longest=1, shortest=1).tolist() == [[4, 1]]


def plain_tree(chains: list[list[int]], num_nodes: int) -> list[tuple[int, ...]]:
    """Paths in the order of their nodes."""
    nodes: list[tuple[int, ...]] = [()]
    for chain in chains:
        for depth in range(1, len(chain) + 1):
            if chain[0] >= 0 and tuple(chain[:depth]) not in nodes:
                nodes.append(tuple(chain[:depth]))
    return nodes[:num_nodes]


@st.composite
def chain_sets(draw) -> list[list[int]]:
    length = draw(st.integers(1, 4))
    chain = st.one_of(st.just([-1] * length), st.lists(st.integers(0, 2), min_size=length, max_size=length))
    return draw(st.lists(chain, min_size=1, max_size=5))


@given(chain_sets(), st.integers(2, 14))
@example([[-1], [-1]], 3)
def test_trees_of_chains_share_prefixes_and_are_valid(chains, num_nodes):
    tree = tree_of_chains(torch.tensor([[9]]), torch.tensor([chains]), num_nodes)
    assert tree.token_ids.shape == (1, num_nodes)
    assert_valid(tree)
    assert list(paths(tree)) == plain_tree(chains, num_nodes)


def test_two_chains_share_their_first_node():
    tree = tree_of_chains(torch.tensor([[5]]), torch.tensor([[[7, 8], [7, 9]]]), 4)
    assert tree.token_ids.tolist() == [[5, 7, 8, 9]]
    assert tree.parent_pos.tolist() == [[0, 0, 1, 1]]


def alone(family: str = "llama", vocab: str = "in-context", shape: TreeShape = TWO_CHAINS) -> SpeculativeDecoder:
    target = Target(tiny_language_model(family, seed=3))
    return SpeculativeDecoder(target, PromptLookupDrafter(), vocab, shape, frequent_ids=FREQUENT)


def joined(
    family: str = "llama", vocab: str = "in-context", shape: TreeShape = WIDE, kind: str = "eagle"
) -> SpeculativeDecoder:
    target = Target(tiny_language_model(family, seed=3))
    if kind == "eagle":
        model = tiny_drafter(target, seed=2, std=0.02)
    else:
        model = CausalLMDrafter(noisy_copy(target.model, noise=0.5), VOCAB_SIZE)
    drafter = JoinedDrafter(model, PromptLookupDrafter())
    return SpeculativeDecoder(target, drafter, vocab, shape, capacity=30, frequent_ids=FREQUENT)


FAMILIES = st.sampled_from(["llama", "qwen3"])
VOCABS = st.sampled_from(["full", "in-context", "static:7"])
SHAPES = st.sampled_from([TreeShape(1, 1, 2), TreeShape(5, 1, 6), WIDE, TWO_CHAINS])
DECODERS = st.one_of(
    st.builds(alone, FAMILIES, VOCABS, SHAPES),
    st.builds(joined, FAMILIES, VOCABS, SHAPES, st.sampled_from(["eagle", "causal-lm"])),
)
SAMPLING = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"temperature": st.just(1.0), "seed": st.integers(0, 99)}),
    st.fixed_dictionaries({"temperature": st.just(0.5), "repetition_penalty": st.just(1.2), "seed": st.integers(0, 9)}),
)
PROMPTS = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=12)


@settings(max_examples=40)
@given(DECODERS, PROMPTS, st.integers(1, 30), SAMPLING)
def test_output_is_the_targets_own_also_in_steps_of_fixed_shape(decoder, prompt, max_new_tokens, sampling):
    plain = decoder.generate_autoregressive(prompt, max_new_tokens=max_new_tokens, **sampling)
    result = decoder.generate(prompt, max_new_tokens=max_new_tokens, **sampling)
    assert result.token_ids == plain.token_ids
    with pytest.MonkeyPatch.context() as patch:  # so that a request passes several widths
        patch.setattr(step_graphs, "MIN_WIDTH", 16)
        steps = list(fixed_loop(decoder, prompt, max_new_tokens, **sampling).steps())
    assert [token for step in steps for token in step][:max_new_tokens] == plain.token_ids
    assert len(steps) == result.stats.target_passes


def test_it_drafts_what_the_text_repeats():
    """Guards the property above: greedy output of a tiny model falls into a cycle, which lookup must foresee."""
    decoder = alone(shape=TreeShape(4, 1, 5))
    result = decoder.generate([1, 2, 3], max_new_tokens=100)
    assert result.stats.mean_accept_length > 2
    assert (result.stats.vocab, result.stats.drafter, result.stats.mean_active_vocab) == ("none", "prompt-lookup", 0)


def test_joined_trees_hold_the_models_best_nodes_and_the_chain():
    decoder = joined(kind="causal-lm")
    loop, _ = decoder.speculate(torch.tensor([[4, 8, 4, 8, 15, 4, 8]]), decoder.tree, 40)
    lookup, grow = decoder.drafter.lookup, loop.tree_drafter.grower.draft
    chains, grown = [], []

    def recording(*arguments):
        chains.append(lookup.chains(1, 3)[0].tolist())
        grown.append(paths(grow(*arguments)))
        return grow(*arguments)

    loop.tree_drafter.grower.draft = recording
    trees = []
    loop.on_verdict = lambda tree, verdict, num_accepted: trees.append(tree)
    for _ in loop.steps():
        pass
    assert any(chain[0] >= 0 for chain in chains)
    for tree, chain, of_model in zip(trees, chains, grown, strict=True):
        assert_valid(tree)
        found = paths(tree)
        if chain[0] >= 0:
            assert tuple(chain) in found
        dropped = of_model.keys() - found.keys()
        assert len(dropped) <= 3
        shared = of_model.keys() & found.keys() - {tuple(chain[:end]) for end in range(4)}
        assert all(of_model[path] >= of_model[gone] for path in shared for gone in dropped)


def test_the_same_request_after_another_gives_the_same_steps():
    for decoder in (alone(), joined()):
        first = decoder.generate([5, 8, 5], max_new_tokens=30)
        decoder.generate([8] * 30, max_new_tokens=40)
        again = decoder.generate([5, 8, 5], max_new_tokens=30)
        assert (again.token_ids, again.stats.target_passes) == (first.token_ids, first.stats.target_passes)


@torch.inference_mode()
def test_nothing_inside_a_step_waits_for_the_device():
    for decoder in (alone(), joined(), joined(kind="causal-lm")):
        loop = fixed_loop(decoder, [1, 2, 3], 20)
        next(steps := loop.steps())
        next(steps)
        with Waits() as waits:
            loop.fixed_steps._step.run(256)
        assert waits.found == []


def test_both_are_drafters_of_fixed_shape():
    for drafter in (PromptLookupDrafter(), joined().drafter):
        assert isinstance(drafter, Drafter)
        assert isinstance(drafter, FixedShapeDrafter)


@pytest.mark.parametrize("make", [alone, joined])
def test_headless_probe_changes_nothing(make):
    decoder = make()
    plain = decoder.generate([2, 4, 2], max_new_tokens=20)
    probed = decoder.generate([2, 4, 2], max_new_tokens=20, probe_headless=True)
    assert probed.token_ids == plain.token_ids
    assert probed.stats.target_passes == plain.stats.target_passes


def test_auto_tree_picks_a_shape_that_decodes_exactly():
    target = Target(tiny_language_model("llama", seed=3))
    decoder = SpeculativeDecoder(target, PromptLookupDrafter(), tree="auto")
    assert decoder.tree == decoder.tree.validated()
    expected = decoder.generate_autoregressive([1, 2, 3], max_new_tokens=20).token_ids
    assert decoder.generate([1, 2, 3], max_new_tokens=20).token_ids == expected


def test_from_pretrained_takes_it_by_name():
    decoder = SpeculativeDecoder.from_pretrained(tiny_language_model("llama", 3), "prompt-lookup")
    assert isinstance(decoder.drafter, PromptLookupDrafter)
    assert decoder.with_vocab("full").vocab.name == "none"


def test_impossible_arguments_are_named():
    for shortest, longest in ((0, 3), (4, 3)):
        with pytest.raises(ValueError, match=rf"shortest must be in \[1, longest 3\], got {shortest}"):
            PromptLookupDrafter(longest=longest, shortest=shortest)
    with pytest.raises(TypeError, match="model must have passes of fixed shape, got TableDrafter"):
        JoinedDrafter(TableDrafter(torch.zeros(3, 3)), PromptLookupDrafter())
    with pytest.raises(NotImplementedError, match="scores no tokens: LookupTreeDrafter grows its trees"):
        PromptLookupDrafter().logits(torch.zeros(1, 1, 0), None)
    with pytest.raises(NotImplementedError, match="runs no levels of a tree: LookupTreeDrafter grows its trees"):
        PromptLookupDrafter().advance(torch.zeros(1, 1), torch.zeros(1, 1, 0), 1, torch.ones(1, 1, 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: captures and replays CUDA graphs")
@pytest.mark.parametrize("kind", ["alone", "joined"])
def test_captured_steps_give_the_tokens_of_plain_ones(kind):
    target = Target(tiny_language_model("llama", 3).float().cuda())
    drafter = PromptLookupDrafter("cuda")
    if kind == "joined":
        drafter = JoinedDrafter(tiny_drafter(target, seed=2, std=0.02), drafter)
    captured = SpeculativeDecoder(target, drafter, "in-context", TreeShape(3, 3, 10))
    plain = SpeculativeDecoder(target, drafter, "in-context", TreeShape(3, 3, 10), cuda_graph=False)
    assert captured.cuda_graph
    for prompt in ([1, 2, 3], [7] * 20, [1, 2, 3]):
        expected = plain.generate(prompt, max_new_tokens=60).token_ids
        assert captured.generate(prompt, max_new_tokens=60).token_ids == expected


def test_a_static_tree_is_joined_too_and_refused_for_lookup_alone():
    tree = StaticTree(((0,), (1,), (0, 0), (0, 1), (1, 0)))
    decoder = joined(shape=tree)
    expected = decoder.generate_autoregressive([1, 2, 3], max_new_tokens=30).token_ids
    result = decoder.generate([1, 2, 3], max_new_tokens=30)
    assert result.token_ids == expected
    assert result.stats.drafter == "eagle+prompt-lookup"
    with pytest.raises(NotImplementedError, match="tree must not be a StaticTree with prompt lookup"):
        alone(shape=tree)


def test_two_decoders_over_one_joined_drafter_do_not_disturb_each_other_or_say_so():
    """With EAGLE-3 each decoder has a target, and a drafter, of its own; with EAGLE-1 the second takes the first's."""
    target = tiny_eagle3_target(seed=4)
    drafter = JoinedDrafter(tiny_eagle3_drafter(target, 2), PromptLookupDrafter())
    target = Target(target.model)
    first, second = (SpeculativeDecoder(target, drafter, tree=TreeShape(3, 3, 10)) for _ in range(2))
    alone = first.generate([1, 2, 3], max_new_tokens=40)
    pieces = first.stream([1, 2, 3], max_new_tokens=40)
    tokens = list(next(pieces).token_ids)
    second.generate([9] * 30, max_new_tokens=40)
    tokens += [token for piece in pieces for token in piece.token_ids]
    assert tokens == alone.token_ids
    assert first.last_stats.target_passes == alone.stats.target_passes


def test_a_drafter_taken_by_another_request_is_an_error_that_says_so():
    model, lookup = tiny_target(seed=4).model, PromptLookupDrafter()
    first, second = (SpeculativeDecoder(Target(model), lookup, tree=TreeShape(3, 1, 4)) for _ in range(2))
    pieces = first.stream([1, 2, 3], max_new_tokens=40)
    next(pieces)
    second.generate([9] * 30, max_new_tokens=5)
    with pytest.raises(RuntimeError, match="before another starts with the same drafter"):
        list(pieces)
