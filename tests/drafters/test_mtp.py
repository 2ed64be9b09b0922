"""Native MTP modules as drafters: their scores are those of transformers, the output the target's with any of them."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel

import nanospec.drafters.mtp
import nanospec.step_graphs as step_graphs
from nanospec import SpeculativeDecoder, TreeShape
from nanospec.drafters import Drafter, JoinedDrafter, MtpDrafter, PromptLookupDrafter
from nanospec.drafters.drafter import FixedShapeDrafter
from nanospec.kv_cache import CachePlace
from nanospec.records import DraftVocab
from nanospec.static_tree import default_static_tree
from nanospec.target import Target
from tests.test_decoding_step import Waits, fixed_loop
from tests.tiny_families import VOCAB_SIZE, WINDOW, family_model
from tests.tiny_mtp import KINDS, mtp_drafter, mtp_model, path_logits, target_model, tiny_mtp

# float64; norms, routers and rotary tables of transformers compute in float32
ATOL = 1e-5
ALL_IDS = DraftVocab(torch.arange(VOCAB_SIZE)[None], torch.tensor([VOCAB_SIZE], dtype=torch.int32), None)
FREQUENT = torch.randperm(VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
SHAPES = (TreeShape(1, 1, 2), TreeShape(4, 1, 5), TreeShape(4, 3, 12), TreeShape(2, 4, 12))
VOCABS = ("full", "in-context", "in-context+prior", "static:20", "hybrid:5")
GREEDY_OR_SAMPLED = st.one_of(
    st.just({}), st.fixed_dictionaries({"temperature": st.just(1.0), "seed": st.integers(0, 99)})
)
TOKENS = st.integers(0, VOCAB_SIZE - 1)
PROMPTS = st.lists(TOKENS, min_size=1, max_size=12)


@cache
def parts(kind: tuple[str, int]) -> tuple[Target, MtpModel]:
    model = target_model(*kind)
    return Target(model), mtp_model(model, std=0.1)


@cache
def decoder_of(kind: tuple[str, int], vocab: str, shape: TreeShape) -> SpeculativeDecoder:
    target, drafter = tiny_mtp(*kind)
    return SpeculativeDecoder(target, drafter, vocab, shape, capacity=25, frequent_ids=FREQUENT)


def take_in(drafter: MtpDrafter, target: Target, text: list[int], cuts: list[int]) -> Tensor:
    """The state after `text`, its tokens verified in as many passes as `cuts` say."""
    target.reset(64)
    drafter.reset(64)
    features = target.prefill(torch.tensor([text[:-1]])).features
    bounds = [0, *sorted({cut for cut in cuts if 0 < cut < len(text) - 1}), len(text) - 1]
    for begin, end in pairwise(bounds):
        state = drafter.extend(torch.tensor([text[1 + begin : 1 + end]]), features[:, begin:end])
    return state


@pytest.mark.parametrize("kind", KINDS, ids=str)
@settings(max_examples=10)
@given(text=st.lists(TOKENS, min_size=5, max_size=16), cuts=st.lists(st.integers(1, 14), max_size=3))
@torch.inference_mode()
def test_a_chain_is_what_transformers_drafts(kind, text, cuts):
    target, mtp = parts(kind)
    drafter, model = mtp_drafter(target, mtp), target.model
    hidden = model(torch.tensor([text[:-1]]), output_hidden_states=True).hidden_states[-1]
    drafted, expected, _ = mtp(
        input_ids=torch.tensor([text[1:]]),
        last_hidden_states=hidden,
        attention_mask=None,
        position_ids=torch.arange(1, len(text))[None],
        mtp_cache=MtpCache(config=model.config.get_mtp_config()),
    )
    state = take_in(drafter, target, text, cuts)
    for level, token_id in enumerate(drafted[0]):
        torch.testing.assert_close(drafter.logits(state, ALL_IDS)[0, 0], expected[0, level], atol=ATOL, rtol=0)
        seen = torch.ones(1, 1, level + 1, dtype=torch.bool)
        state = drafter.advance(token_id[None, None], state, level + 1, seen)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@settings(max_examples=7)
@given(
    text=st.lists(TOKENS, min_size=4, max_size=12),
    cuts=st.lists(st.integers(1, 10), max_size=2),
    width=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@torch.inference_mode()
def test_scores_of_a_tree_are_those_of_every_branch_alone_also_where_only_the_device_knows(
    kind, text, cuts, width, seed
):
    """Deeper than there are modules, and further than the window of a layer that slides."""
    target, mtp = parts(kind)
    drafter, generator = mtp_drafter(target, mtp), torch.Generator().manual_seed(seed)
    state = take_in(drafter, target, text, cuts).expand(1, width, -1)
    place = CachePlace(torch.tensor([len(text) - 1]), 60)
    paths, visible = [[] for _ in range(width)], torch.zeros(width, 0, dtype=torch.bool)
    for level in range(1, 5):
        parents = torch.randint(width, (width,), generator=generator).tolist()
        ids = torch.randint(VOCAB_SIZE, (width,), generator=generator)
        visible = torch.cat((visible[parents], torch.eye(width, dtype=torch.bool)), 1)
        inputs, state = state[:, parents], drafter.advance(ids[None], state[:, parents], level, visible[None])
        at_place = drafter.advance_at(ids[None], inputs, level, visible[None], place, drafter.memory())
        torch.testing.assert_close(at_place, state, atol=ATOL, rtol=0)
        paths = [[*paths[parent], int(token)] for parent, token in zip(parents, ids, strict=True)]
        expected = torch.stack([path_logits(target.model, mtp, text, path)[-1] for path in paths])
        torch.testing.assert_close(drafter.logits(state, ALL_IDS)[0], expected, atol=ATOL, rtol=0)


def test_windows_matter_to_the_scores_that_were_compared():
    """Guards the property above: a layer that slides, and texts longer than its window."""
    _, mtp = parts(("mellum", 1))
    assert mtp.config.layer_types == ["sliding_attention"]
    assert mtp.config.sliding_window == WINDOW < 12


@settings(max_examples=25)
@given(
    kind=st.sampled_from(KINDS),
    vocab=st.sampled_from(VOCABS),
    shape=st.sampled_from(SHAPES),
    prompt=PROMPTS,
    max_new_tokens=st.integers(1, 24),
    sampling=GREEDY_OR_SAMPLED,
)
def test_output_is_the_targets_own_also_in_steps_of_fixed_shape(kind, vocab, shape, prompt, max_new_tokens, sampling):
    decoder = decoder_of(kind, vocab, shape)
    plain = decoder.generate_autoregressive(prompt, max_new_tokens=max_new_tokens, **sampling)
    result = decoder.generate(prompt, max_new_tokens=max_new_tokens, **sampling)
    assert result.token_ids == plain.token_ids
    with pytest.MonkeyPatch.context() as patch:  # so that a request passes several widths
        patch.setattr(step_graphs, "MIN_WIDTH", 16)
        steps = list(fixed_loop(decoder, prompt, max_new_tokens, **sampling).steps())
    assert [token for step in steps for token in step][:max_new_tokens] == plain.token_ids
    assert len(steps) == result.stats.target_passes


@pytest.mark.parametrize("kind", [("glm4_moe", 1), ("deepseek_v3", 2)], ids=str)
def test_joined_with_prompt_lookup_and_in_static_trees_the_output_is_the_targets_own(kind):
    target, drafter = tiny_mtp(*kind)
    joined = SpeculativeDecoder(target, JoinedDrafter(drafter, PromptLookupDrafter()), "in-context", SHAPES[2])
    static = SpeculativeDecoder(target, drafter, "in-context", default_static_tree(4, 12))
    for sampling in ({}, {"temperature": 1.0, "seed": 4}):
        plain = joined.generate_autoregressive([1, 2, 3, 1, 2], max_new_tokens=30, **sampling)
        for decoder in (joined, static):
            assert decoder.generate([1, 2, 3, 1, 2], max_new_tokens=30, **sampling).token_ids == plain.token_ids


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_modules_with_noise_are_right_now_and_then(kind):
    """Guards the property of the output, which a draft that is never right, or always, would not test."""
    length = decoder_of(kind, "full", SHAPES[2]).generate([1, 2, 3], max_new_tokens=40).stats.mean_accept_length
    assert 1.2 < length < 4.9


def test_verified_tokens_in_chunks_equal_one_pass(monkeypatch):
    target, mtp = parts(("glm4_moe", 3))
    drafter, text = mtp_drafter(target, mtp), list(range(1, 30))
    expected = take_in(drafter, target, text, [])
    monkeypatch.setattr(nanospec.drafters.mtp, "EXTEND_CHUNK", 4)
    torch.testing.assert_close(take_in(drafter, target, text, []), expected, atol=ATOL, rtol=0)


@torch.inference_mode()
def test_extend_by_the_first_tokens_equals_extend_and_leaves_the_rest_uncertain():
    target, mtp = parts(("glm4_moe", 3))
    drafter, text = mtp_drafter(target, mtp), [5, 6, 7, 8, 9]
    expected = take_in(drafter, target, text, [2])
    features = target_features(target, text)[:, [2, 3, 0]]  # of the tokens before 8 and 9, and rubbish
    take_in(drafter, target, text[:3], [])
    place, ids = CachePlace(torch.tensor([2]), 20), torch.tensor([[8, 9, 1]])
    at_place = drafter.extend_at(ids, features, torch.tensor([2]), place, drafter.memory())
    assert drafter.cache.length == 2
    torch.testing.assert_close(at_place, expected, atol=ATOL, rtol=0)
    assert torch.equal(drafter.memory().last_state, at_place)


def target_features(target: Target, text: list[int]) -> Tensor:
    target.reset(64)
    return target.prefill(torch.tensor([text])).features


def test_what_earlier_requests_left_in_the_caches_does_not_matter():
    decoder = decoder_of(("deepseek_v3", 2), "in-context", SHAPES[2])
    expected = list(fixed_loop(decoder, [1, 2, 3], 30).steps())
    with torch.inference_mode():
        for buffer in decoder.drafter.memory():
            buffer.fill_(torch.nan)
    assert list(fixed_loop(decoder, [1, 2, 3], 30).steps()) == expected


@pytest.mark.parametrize("kind", [("deepseek_v3", 2), ("mellum", 1)], ids=str)
@torch.inference_mode()
def test_nothing_inside_a_step_waits_for_the_device(kind):
    loop = fixed_loop(decoder_of(kind, "in-context", SHAPES[2]), [1, 2, 3], 20)
    next(steps := loop.steps())
    next(steps)
    with Waits() as waits:
        loop.fixed_steps._step.run(256)
    assert waits.found == []


def test_it_is_a_drafter_of_fixed_shape_with_the_targets_head():
    target, drafter = tiny_mtp("glm4_moe", 1)
    assert isinstance(drafter, Drafter)
    assert isinstance(drafter, FixedShapeDrafter)
    assert drafter.head.weight.data_ptr() == target.head_weight.data_ptr()
    assert not any(name.startswith(("embed", "lm_head")) for name in drafter.state_dict())


def test_an_embedding_and_a_head_of_its_own_are_read_in_place_of_the_targets():
    target, mtp = parts(("glm4_moe", 1))
    drafter = MtpDrafter(target, 1, own_embedding=True, own_head=True).double().requires_grad_(False)
    drafter.layers.load_state_dict(mtp.layers.state_dict())
    order = torch.randperm(VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = mtp_drafter(target, mtp)
        state = take_in(expected, target, [1, 2, 3], [])
        drafter.embed_tokens.weight[order] = target.embed_tokens.weight.detach()
        drafter.lm_head.weight[order] = target.head_weight.detach()
        features = target_features(target, [1, 2])
        drafter.reset(9)
        own = drafter.extend(order[torch.tensor([[2, 3]])], features)
    torch.testing.assert_close(own, state, atol=ATOL, rtol=0)
    torch.testing.assert_close(
        drafter.logits(own, ALL_IDS)[..., order], expected.logits(state, ALL_IDS), atol=ATOL, rtol=0
    )
    decoder = SpeculativeDecoder(target, drafter, "in-context", SHAPES[2], capacity=25)
    plain = decoder.generate_autoregressive([1, 2, 3], max_new_tokens=20)
    assert decoder.generate([1, 2, 3], max_new_tokens=20).token_ids == plain.token_ids
    chosen = decoder.vocab.select(8)
    assert torch.equal(chosen.rows, drafter.lm_head.weight[chosen.draft_ids])


def test_targets_without_such_modules_are_refused_by_name():
    with pytest.raises(
        NotImplementedError,
        match="must be one of deepseek_v3, glm4_moe, mellum for native MTP modules, got 'qwen3_moe'",
    ):
        MtpDrafter(Target(family_model("qwen3_moe")), 1)


def test_another_number_of_modules_than_the_config_says_is_refused():
    with pytest.raises(ValueError, match="num_mtp_layers must be 2, as many as there are MTP modules, got 1"):
        MtpDrafter(Target(target_model("glm4_moe", 1)), 2)
    with pytest.raises(ValueError, match="num_mtp_layers must be 1, as many as there are MTP modules, got None"):
        MtpDrafter(Target(family_model("mellum")), 1)


def test_a_compiled_decoder_refuses_it_by_name():
    target, drafter = tiny_mtp("glm4_moe", 1)
    with pytest.raises(NotImplementedError, match="needs an EagleDrafter as drafter, got MtpDrafter"):
        SpeculativeDecoder(target, drafter, "full", compile="eager")
