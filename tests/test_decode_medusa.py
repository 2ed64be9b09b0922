"""Exactness of the whole decoder with Medusa heads: any tree, any vocabulary, any layout of the heads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec import SpeculativeDecoder, StaticTree, TreeShape, step_graphs
from nanospec.decoding_step import DecodingStep
from nanospec.drafters import JoinedDrafter, PromptLookupDrafter
from nanospec.request import Request
from nanospec.sampling import SamplingParams
from nanospec.static_tree import default_static_tree
from nanospec.step_graphs import FixedSteps
from tests.test_static_tree_drafter import static_trees
from tests.tiny_medusa import ARCHITECTURES, FEW_IDS, target_of, tiny_medusa
from tests.tiny_pair import tiny_drafter, tiny_target

POLICIES = ("full", "in-context", "static:9")
HEADS = 3
FREQUENT = torch.randperm(FEW_IDS, generator=torch.Generator().manual_seed(0))
SAMPLED = {"temperature": 1.0}

prompts = st.lists(st.integers(0, FEW_IDS - 1), min_size=1, max_size=8)


@st.composite
def trees(draw) -> TreeShape | StaticTree:
    if draw(st.booleans()):
        return draw(static_trees(max_depth=HEADS, max_nodes=10))
    depth, branching = draw(st.integers(1, HEADS)), draw(st.integers(1, 5))
    return TreeShape(depth, branching, draw(st.integers(2, 1 + TreeShape(depth, branching, 2).num_candidates)))


@st.composite
def decoders(draw, architecture: str, policy: str) -> SpeculativeDecoder:
    target = target_of(architecture, draw(st.integers(0, 4)))
    outputs = draw(st.sampled_from(["own", "shared", "target"]))
    token_map = FREQUENT[:11] if outputs != "target" and draw(st.booleans()) else None
    drafter = tiny_medusa(target, draw(st.integers(0, 4)), HEADS, draw(st.integers(0, 2)), outputs, token_map)
    return SpeculativeDecoder(target, drafter, policy, draw(trees()), num_top=3, capacity=12, frequent_ids=FREQUENT)


@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "T=1"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=20)
@given(data=st.data(), prompt=prompts, seed=st.integers(0, 99))
def test_output_is_autoregressive_output(architecture, policy, sampling, data, prompt, seed):
    decoder = data.draw(decoders(architecture, policy))
    plain = decoder.generate_autoregressive(prompt, max_new_tokens=16, seed=seed, **sampling)
    result = decoder.generate(prompt, max_new_tokens=16, seed=seed, **sampling)
    assert result.token_ids == plain.token_ids
    assert result.stats.target_passes <= plain.stats.target_passes


def pair(tree=None, policy: str = "full", num_heads: int = HEADS, **options) -> SpeculativeDecoder:
    target = tiny_target(4, FEW_IDS)
    return SpeculativeDecoder(target, tiny_medusa(target, 2, num_heads), policy, tree, frequent_ids=FREQUENT, **options)


@pytest.mark.parametrize("tree", [TreeShape(3, 4, 16), default_static_tree(HEADS, 16)])
def test_the_heads_are_right_now_and_then(tree):
    """Guards the property above: with heads that are never right it would hold for a broken walk too."""
    assert pair(tree).generate([1, 2, 3], max_new_tokens=60).stats.mean_accept_length > 1.1


def test_heads_that_know_the_text_are_accepted():
    """The right feature, the right head at the right depth: heads fitted to the text that the target will say."""
    target = tiny_target(4, FEW_IDS)
    drafter = tiny_medusa(target, 2, num_layers=0)
    decoder = SpeculativeDecoder(target, drafter, "full", TreeShape(HEADS, 1, HEADS + 1))
    prompt = [1, 2, 3]
    text = decoder.generate_autoregressive(prompt, max_new_tokens=20).token_ids
    sequence = torch.tensor(prompt + text)
    features = target.model.base_model(sequence[None]).last_hidden_state[0].detach()
    for head, rows in enumerate(drafter.outputs):
        ahead = head + 2  # the target's own head says the next token, the first of ours the one after
        wanted = torch.nn.functional.one_hot(sequence[ahead:], FEW_IDS).double()
        rows.copy_(torch.linalg.lstsq(features[:-ahead], wanted).solution.T)
    fitted = decoder.generate(prompt, max_new_tokens=20)
    assert fitted.token_ids == text
    assert fitted.stats.mean_accept_length == pytest.approx(HEADS + 1, abs=0.5)  # the last step may lie beyond the text


@pytest.mark.parametrize("tree", [TreeShape(3, 4, 16), default_static_tree(HEADS, 16)])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("sampling", [{}, {**SAMPLED, "seed": 3}], ids=["greedy", "T=1"])
def test_steps_of_fixed_shape_yield_the_same_tokens(tree, policy, sampling):
    decoder = pair(tree, policy)
    expected = decoder.generate([5, 1, 6], max_new_tokens=40, **sampling)
    request = Request(torch.tensor([[5, 1, 6]]), 40, SamplingParams(**sampling))
    loop, stats = decoder._speculate(request, decoder.tree)
    step = loop.decoding_step()
    assert isinstance(step, DecodingStep)
    loop.fixed_steps = FixedSteps(step)
    assert [token for ids in loop.steps() for token in ids][:40] == expected.token_ids
    assert stats.target_passes == expected.stats.target_passes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: captures and replays CUDA graphs")
@pytest.mark.parametrize("tree", [TreeShape(3, 4, 16), default_static_tree(HEADS, 16)])
@pytest.mark.parametrize("policy", POLICIES)
def test_captured_steps_yield_the_same_tokens(tree, policy, monkeypatch):
    monkeypatch.setattr(step_graphs, "MIN_WIDTH", 32)
    target = tiny_target(4, FEW_IDS, torch.float32).cuda()
    drafter = tiny_medusa(target, 2, HEADS).cuda()
    options = {"tree": tree, "frequent_ids": FREQUENT}
    captured = SpeculativeDecoder(target, drafter, policy, **options)
    plain = SpeculativeDecoder(target, drafter, policy, cuda_graph=False, **options)
    assert captured.cuda_graph
    for prompt in ([1, 2, 3], [7] * 20):
        expected = plain.generate(prompt, max_new_tokens=60)
        result = captured.generate(prompt, max_new_tokens=60)
        assert result.token_ids == expected.token_ids
        assert result.stats.target_passes == expected.stats.target_passes


def test_default_and_measured_trees_are_no_deeper_than_there_are_heads():
    assert pair(num_heads=2).tree.depth == 2
    assert pair("auto").tree.depth <= HEADS
    decoder = pair("auto")
    joined = JoinedDrafter(decoder.drafter, PromptLookupDrafter())
    assert SpeculativeDecoder(decoder.target, joined, "full", "auto").tree.depth <= HEADS


def test_a_static_tree_stays_with_the_decoder():
    tree = default_static_tree(HEADS, 12)
    decoder = pair(tree)
    assert decoder.with_vocab("in-context").static_tree == tree
    result = decoder.generate([1, 2], max_new_tokens=9, probe_headless=True)
    assert result.token_ids == decoder.generate_autoregressive([1, 2], max_new_tokens=9).token_ids
    assert result.stats.tree == tree.shape
    assert result.stats.headless_draft_seconds > 0


def test_an_eagle_drafter_grows_a_static_tree_too():
    target = tiny_target(4, FEW_IDS)
    drafter = tiny_drafter(target, 2, std=0.02)
    decoder = SpeculativeDecoder(target, drafter, "in-context", default_static_tree(4, 20))
    result = decoder.generate([1, 2, 3], max_new_tokens=40)
    assert result.token_ids == decoder.generate_autoregressive([1, 2, 3], max_new_tokens=40).token_ids
    assert result.stats.mean_accept_length > 1.2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tree": (4, 2, 5)}, ValueError, "tree depth must be at most 3 for this medusa drafter, got TreeShape"),
        ({"tree": StaticTree([(0,), (0, 0), (0, 0, 0), (0,) * 4])}, ValueError, "tree depth must be at most 3"),
        ({"tree": StaticTree([(17,)])}, ValueError, "branching must be at most 17, the rows of the vocabulary"),
        ({"compile": "eager"}, NotImplementedError, "compile=True needs an EagleDrafter"),
    ],
)
def test_bad_options_name_the_argument(options, error, message):
    with pytest.raises(error, match=message):
        pair(**options)


def test_a_static_tree_is_not_compiled():
    target = tiny_target(4, FEW_IDS)
    with pytest.raises(NotImplementedError, match="compile must be False with a StaticTree, got 'eager'"):
        SpeculativeDecoder(target, tiny_drafter(target, 2), "full", StaticTree([(0,)]), compile="eager")
