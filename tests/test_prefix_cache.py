"""Requests that go on from one another: tokens and figures of a decoder that reads each whole text."""

from __future__ import annotations

from itertools import takewhile
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nanospec.step_graphs as step_graphs
from nanospec import PrefixCache, SpeculativeDecoder
from nanospec.drafters import JoinedDrafter, PromptLookupDrafter
from nanospec.target import Target
from tests.tiny_families import FAMILIES, family_drafter, family_model
from tests.tiny_medusa import FEW_IDS
from tests.tiny_mtp import tiny_mtp
from tests.tiny_pair import tiny_drafter, tiny_target
from tests.turns import TREE, answer, build, decoders, figures, in_fixed_steps

KINDS = ("eagle", "eagle3", "medusa", "causal-lm", "prompt-lookup", "joined", "mtp")
VOCABS = ("full", "in-context", "static:9", "hybrid:5+prior", "hybrid:auto")
ATOL = 1e-5  # float64, but routers and norms of transformers compute in float32


ids = st.integers(0, FEW_IDS - 1)
SAMPLING = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"temperature": st.just(1.0), "top_p": st.just(0.9), "seed": st.integers(0, 99)}),
    st.fixed_dictionaries({"repetition_penalty": st.just(1.3)}),
)


@st.composite
def turns(draw) -> dict:
    """What a user does: leaves an answer early, has the end or the middle of the history rewritten, says something."""
    return {
        "num_pieces": draw(st.one_of(st.none(), st.integers(0, 3))),
        "num_dropped": draw(st.sampled_from([0, 0, 0, 1, 4])),
        "changed": draw(st.sampled_from([None, None, None, 0, 5])),
        "said": draw(st.lists(ids, max_size=5)),
        "max_new_tokens": draw(st.integers(1, 14)),
        "sampling": draw(SAMPLING),
    }


def held_rows(decoder: SpeculativeDecoder) -> list[torch.Tensor]:
    """What the caches of target and drafter hold of the text."""
    rows, drafter = [], decoder.drafter
    for part in (drafter.model, drafter.lookup) if isinstance(drafter, JoinedDrafter) else (drafter,):
        if isinstance(part, PromptLookupDrafter):
            rows.append(part.history[: part.length])
    model = drafter.model if isinstance(drafter, JoinedDrafter) else drafter
    caches = [decoder.target.cache, getattr(getattr(model, "body", model), "cache", None)]
    return rows + [cache.buffer[..., : cache.length, :] for cache in caches if cache is not None]


@settings(max_examples=40)
@given(
    kind=st.sampled_from(KINDS),
    vocab=st.sampled_from(VOCABS),
    is_fixed=st.booleans(),
    text=st.lists(ids, min_size=1, max_size=8),
    conversation=st.lists(turns(), min_size=2, max_size=4),
)
def test_every_turn_is_that_of_a_decoder_that_reads_the_whole_text(kind, vocab, is_fixed, text, conversation):
    decoder, fresh = decoders(kind, vocab, is_fixed)
    held, prefix_cache = [], PrefixCache()
    with pytest.MonkeyPatch.context() as patch:  # so that a conversation passes several widths
        patch.setattr(step_graphs, "MIN_WIDTH", 16)
        for turn in conversation:
            options = {"num_pieces": turn["num_pieces"], "max_new_tokens": turn["max_new_tokens"], **turn["sampling"]}
            said = answer(decoder, text, prefix_cache=prefix_cache, **options)
            assert said == answer(fresh, text, **options)
            assert figures(decoder) == figures(fresh)
            for rows, expected in zip(held_rows(decoder), held_rows(fresh), strict=True):
                torch.testing.assert_close(rows, expected, atol=ATOL, rtol=0)
            num_common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(held, text, strict=False)))
            num_new = len(text) - min(num_common, len(text) - 1)
            assert num_new <= len(text) - decoder.last_stats.cached_tokens <= num_new + TREE.depth + 2
            held = [*text, *said]
            text = held[: max(1, len(held) - turn["num_dropped"])]
            if turn["changed"] is not None and turn["changed"] < len(text):
                text[turn["changed"]] = (text[turn["changed"]] + 1) % FEW_IDS
            text = [*text, *turn["said"]]


def test_drafts_are_right_now_and_then():
    """Guards the property above, which decoders whose drafts are never right would pass with any cache."""
    for kind in KINDS:
        decoder, _ = decoders(kind, "in-context", False)
        assert decoder.generate([1, 2, 3, 1, 2], max_new_tokens=40).stats.mean_accept_length > 1.1, kind


@pytest.mark.parametrize("is_fixed", [False, True])
@pytest.mark.parametrize("family", ["deepseek_v3", "gemma3_text", "mistral-window", "phi3-longrope", "qwen3_moe"])
def test_windows_latent_caches_and_experts_go_on_as_well(family, is_fixed):
    assert family in FAMILIES
    target = Target(family_model(family))
    decoder = SpeculativeDecoder(target, family_drafter(target), "in-context", TREE)
    decoder = in_fixed_steps(decoder) if is_fixed else decoder
    text, prefix_cache = [3, 1, 4, 1, 5], PrefixCache()
    for said in ([9, 2], [6], [5, 3]):
        expected = decoder.generate_autoregressive(text, max_new_tokens=8).token_ids
        decoder.generate(text[:3], max_new_tokens=1, prefix_cache=prefix_cache)
        result = decoder.generate(text, max_new_tokens=8, prefix_cache=prefix_cache)
        assert result.token_ids == expected
        assert result.stats.cached_tokens == 2
        text = [*text, *expected, *said]


def test_compiled_passes_go_on_as_well():
    decoder, plain = build("eagle", compile="eager"), build("eagle")
    text, prefix_cache = [1, 2, 3], PrefixCache()
    for _ in range(3):
        result = decoder.generate(text, max_new_tokens=10, prefix_cache=prefix_cache)
        assert result.token_ids == plain.generate(text, max_new_tokens=10).token_ids
        assert result.stats.cached_tokens >= len(text) - 11
        text = [*text, *result.token_ids, 7]


def test_an_end_inside_of_an_accepted_path_is_where_the_next_turn_goes_on():
    decoder, fresh = decoders("eagle", "full", False)
    text = [1, 2, 3]
    full = fresh.generate(text, max_new_tokens=20).token_ids
    for eos in set(full):
        prefix_cache = PrefixCache()
        decoder.eos_ids = frozenset([eos])
        said = decoder.generate(text, max_new_tokens=20, prefix_cache=prefix_cache).token_ids
        decoder.eos_ids = frozenset()
        assert said == full[: full.index(eos) + 1]
        longer = [*text, *said, 8]
        result = decoder.generate(longer, max_new_tokens=9, prefix_cache=prefix_cache)
        assert result.token_ids == fresh.generate(longer, max_new_tokens=9).token_ids


@given(st.lists(st.integers(0, 2), min_size=2, max_size=8), st.lists(st.integers(0, 2), min_size=1, max_size=8))
def test_shared_positions_are_those_whose_token_and_next_token_agree(held, asked):
    prefix_cache = PrefixCache()
    prefix_cache.begin(held[0], held[1:2], torch.zeros(1, 3))
    for token_id in held[2:]:
        prefix_cache.append([token_id], torch.zeros(1, 3))
    expected = max(length for length in range(len(held)) if length == 0 or held[: length + 1] == asked[: length + 1])
    assert prefix_cache.num_shared(asked) == expected
    prefix_cache.cut(expected)
    assert (len(prefix_cache), prefix_cache.num_shared(held)) == (expected, expected)


def test_a_text_that_parts_at_its_last_token_shares_what_comes_before():
    prefix_cache = PrefixCache()
    prefix_cache.begin(5, [6, 7, 8], torch.zeros(3, 1))
    assert prefix_cache.num_shared([5, 6, 7, 9]) == 2
    assert prefix_cache.num_shared([5, 6, 7, 8, 9]) == 3
    assert prefix_cache.num_shared([5, 6, 7, 8]) == 3
    assert prefix_cache.num_shared([5]) == 0


def test_a_batch_in_between_disturbs_nothing_and_another_vocabulary_may_go_on():
    decoder, prefix_cache = build("eagle", "in-context"), PrefixCache()
    text = [1, 2, 3]
    text += [*decoder.generate(text, max_new_tokens=9, prefix_cache=prefix_cache).token_ids, 7]
    list(decoder.generate_many([[4, 5], [6]], max_batch=2, max_new_tokens=4))
    expected = build("eagle").generate(text, max_new_tokens=9)
    other = decoder.with_vocab("hybrid:5")
    result = other.generate(text, max_new_tokens=9, prefix_cache=prefix_cache)
    assert result.token_ids == expected.token_ids
    assert result.stats.cached_tokens > 3


def test_after_clear_the_whole_text_is_read():
    decoder, prefix_cache = build("eagle"), PrefixCache()
    decoder.generate([1, 2, 3], max_new_tokens=9, prefix_cache=prefix_cache)
    assert len(prefix_cache) > 3
    prefix_cache.clear()
    assert len(prefix_cache) == 0
    assert decoder.generate([1, 2, 3], max_new_tokens=2, prefix_cache=prefix_cache).stats.cached_tokens == 0


class OneWay:
    """A drafter without `resume`."""

    def __init__(self, inner) -> None:
        self.name, self.dtype, self.reset = inner.name, inner.dtype, inner.reset
        self.extend, self.advance, self.logits = inner.extend, inner.advance, inner.logits


@pytest.mark.parametrize("drafter", ["one way", "several modules"])
def test_drafters_that_cannot_go_back_read_the_whole_text(drafter):
    if drafter == "one way":
        target = tiny_target(4)
        decoder = SpeculativeDecoder(target, OneWay(tiny_drafter(target, 2, std=0.02)), "full", TREE)
    else:
        decoder = SpeculativeDecoder(*tiny_mtp("glm4_moe", 3), "in-context", TREE)
    text, prefix_cache = [1, 2, 3], PrefixCache()
    for _ in range(3):
        result = decoder.generate(text, max_new_tokens=9, prefix_cache=prefix_cache)
        figures_of_turn = figures(decoder)
        assert result.stats.cached_tokens == 0
        assert result.token_ids == decoder.generate(text, max_new_tokens=9).token_ids
        assert figures_of_turn == figures(decoder)
        text = [*text, *result.token_ids, 7]


@pytest.mark.parametrize("method", ["generate", "stream"])
def test_what_cannot_be_a_prefix_cache_is_refused_by_name(method):
    decoder = build("eagle")
    with pytest.raises(TypeError, match="prefix_cache must be a PrefixCache or None, got dict"):
        getattr(decoder, method)([1, 2], prefix_cache={})
    decoder.target.ranks = SimpleNamespace(size=2)
    with pytest.raises(NotImplementedError, match="prefix_cache must be None with a tensor-parallel target"):
        getattr(decoder, method)([1, 2], prefix_cache=PrefixCache())
