"""Requests that go on from one another: tokens and figures of a decoder that reads each whole text."""

from __future__ import annotations

from functools import cache
from itertools import takewhile
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nanospec.step_graphs as step_graphs
from nanospec import PrefixCache, SpeculativeDecoder, TreeShape
from nanospec.drafters import CausalLMDrafter, JoinedDrafter, PromptLookupDrafter
from nanospec.kv_cache import KVCache
from nanospec.step_graphs import FixedSteps
from nanospec.target import Target
from tests.tiny_families import FAMILIES, family_drafter, family_model
from tests.tiny_language_models import noisy_copy, tiny_language_model
from tests.tiny_medusa import FEW_IDS, tiny_medusa
from tests.tiny_mtp import tiny_mtp
from tests.tiny_pair import tiny_drafter, tiny_eagle3_drafter, tiny_eagle3_target, tiny_target

TREE = TreeShape(3, 3, 9)
FREQUENT = torch.randperm(FEW_IDS, generator=torch.Generator().manual_seed(0))
KINDS = ("eagle", "eagle3", "medusa", "causal-lm", "prompt-lookup", "joined", "mtp")
VOCABS = ("full", "in-context", "static:9", "hybrid:5+prior", "hybrid:auto")
ATOL = 1e-5  # float64, but routers and norms of transformers compute in float32
FIGURES = ("new_tokens", "target_passes", "steps", "step_tokens", "active_rows", "observed_ids", "unsayable_ids")


def build(kind: str, vocab: str = "in-context", **options) -> SpeculativeDecoder:
    if kind == "mtp":
        target, drafter = tiny_mtp("glm4_moe", 1)
    elif kind == "eagle3":
        target = tiny_eagle3_target(1)
        drafter = tiny_eagle3_drafter(target, 2, num_rows=40)
    elif kind == "causal-lm":
        model = tiny_language_model("qwen3", seed=3)
        target, drafter = Target(model), CausalLMDrafter(noisy_copy(model, noise=0.3), 61)
    elif kind == "medusa":
        target = tiny_target(4, vocab_size=FEW_IDS)
        drafter = tiny_medusa(target, 2)
    else:
        target = tiny_target(4)
        eagle, lookup = tiny_drafter(target, 2, std=0.02), PromptLookupDrafter()
        drafter = {"eagle": eagle, "prompt-lookup": lookup, "joined": JoinedDrafter(eagle, lookup)}[kind]
    return SpeculativeDecoder(target, drafter, vocab, TREE, capacity=25, frequent_ids=FREQUENT, **options)


def in_fixed_steps(decoder: SpeculativeDecoder) -> SpeculativeDecoder:
    """The decoder, whose steps now run as a captured graph would run them."""
    plain = decoder._speculate

    def with_fixed_steps(*arguments):
        loop, stats = plain(*arguments)
        loop.fixed_steps = FixedSteps(loop.decoding_step())
        return loop, stats

    decoder._speculate = with_fixed_steps  # type: ignore[method-assign]
    return decoder


@cache
def decoders(kind: str, vocab: str, is_fixed: bool) -> tuple[SpeculativeDecoder, SpeculativeDecoder]:
    """Two over weights of the same numbers: one for conversations, one that reads every text whole."""
    pair = build(kind, vocab), build(kind, vocab)
    return (in_fixed_steps(pair[0]), in_fixed_steps(pair[1])) if is_fixed else pair


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


def answer(decoder: SpeculativeDecoder, text: list[int], num_pieces: int | None = None, **options) -> list[int]:
    """Tokens of a stream, which is closed after so many pieces."""
    pieces, tokens = decoder.stream(text, **options), []
    for number, piece in enumerate(pieces):
        if number == num_pieces:
            break
        tokens += piece.token_ids
    pieces.close()
    return tokens


def figures(decoder: SpeculativeDecoder) -> list[int]:
    return [getattr(decoder.last_stats, name) for name in FIGURES]


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


def write_in_place(decoder: SpeculativeDecoder) -> None:
    with torch.no_grad():
        decoder.target.model.model.layers[0].mlp.up_proj.weight.mul_(-1.0)


def move_weights(decoder: SpeculativeDecoder) -> None:
    layer = decoder.target.model.model.layers[1].self_attn.v_proj
    layer.weight = torch.nn.Parameter(-layer.weight.detach())


BETWEEN = {
    "another request": lambda decoder: decoder.generate([9, 9], max_new_tokens=3),
    "plain decoding": lambda decoder: decoder.generate_autoregressive([9, 9], max_new_tokens=3),
    "a stream left early": lambda decoder: next(decoder.stream([9, 9], max_new_tokens=30)),
    "another conversation": lambda decoder: decoder.generate([9, 9], max_new_tokens=3, prefix_cache=PrefixCache()),
    "another vocabulary": lambda decoder: decoder.with_vocab("full").generate([9], max_new_tokens=3),
    "the bare target": lambda decoder: decoder.target.reset(4),
    "weights written in place": write_in_place,
    "other weights": move_weights,
}


@pytest.mark.parametrize("kind", ["eagle", "joined"])
@pytest.mark.parametrize("between", BETWEEN)
def test_what_came_in_between_makes_the_next_turn_read_its_whole_text(between, kind):
    decoder, prefix_cache = build(kind), PrefixCache()
    text = [1, 2, 3]
    text += [*decoder.generate(text, max_new_tokens=9, prefix_cache=prefix_cache).token_ids, 7]
    BETWEEN[between](decoder)
    result = decoder.generate(text, max_new_tokens=9, prefix_cache=prefix_cache)
    assert result.stats.cached_tokens == 0
    assert result.token_ids == decoder.generate_autoregressive(text, max_new_tokens=9).token_ids


def test_other_weights_at_the_address_of_those_before_are_told():
    decoder, prefix_cache = build("eagle"), PrefixCache()
    layer = decoder.target.model.model.layers[0].self_attn.v_proj
    memory = layer.weight.detach().numpy().copy()
    layer.weight = torch.nn.Parameter(torch.from_numpy(memory))
    text = [1, 2, 3]
    text += [*decoder.generate(text, max_new_tokens=9, prefix_cache=prefix_cache).token_ids, 7]
    memory *= -2
    layer.weight = torch.nn.Parameter(torch.from_numpy(memory))
    result = decoder.generate(text, max_new_tokens=9, prefix_cache=prefix_cache)
    assert result.stats.cached_tokens == 0
    assert result.token_ids == decoder.generate_autoregressive(text, max_new_tokens=9).token_ids


def test_another_rotary_embedding_is_told():
    decoder, prefix_cache = build("eagle"), PrefixCache()
    text = [1, 2, 3]
    text += [*decoder.generate(text, max_new_tokens=9, prefix_cache=prefix_cache).token_ids, 7]
    rotary = decoder.target.model.model.rotary_emb
    rotary.inv_freq = rotary.inv_freq / 4
    result = decoder.generate(text, max_new_tokens=9, prefix_cache=prefix_cache)
    assert result.stats.cached_tokens == 0
    assert result.token_ids == decoder.generate_autoregressive(text, max_new_tokens=9).token_ids


@pytest.mark.parametrize("kind", ["eagle", "medusa"])
def test_two_targets_over_one_model_do_not_take_each_others_text(kind):
    first, prefix_cache = build(kind), PrefixCache()
    second = SpeculativeDecoder(Target(first.target.model), first.drafter, "in-context", TREE, capacity=25)
    second.generate_autoregressive([9, 8, 7, 6, 5, 4, 3, 2, 1, 0] * 2, max_new_tokens=9)
    text = [1, 2, 3]
    text += [*first.generate(text, max_new_tokens=9, prefix_cache=prefix_cache).token_ids, 7]
    assert first.target.cache.num_resets == second.target.cache.num_resets
    result = second.generate(text, max_new_tokens=9, prefix_cache=prefix_cache)
    assert result.stats.cached_tokens == 0
    assert result.token_ids == second.generate_autoregressive(text, max_new_tokens=9).token_ids


@pytest.mark.parametrize("is_fixed", [False, True])
def test_of_two_streams_with_one_prefix_cache_the_later_one_keeps_it(is_fixed):
    first, second = decoders("eagle", "full", is_fixed)
    prefix_cache, text = PrefixCache(), [1, 2, 3]
    early = first.stream([5, 6, 7], max_new_tokens=40, prefix_cache=prefix_cache)
    next(early)
    late = second.stream(text, max_new_tokens=12, prefix_cache=prefix_cache)
    tokens = next(late).token_ids
    for _ in range(3):
        next(early)
    tokens += [token_id for piece in late for token_id in piece.token_ids]
    assert 0 < len(prefix_cache) <= len(text) + len(tokens)
    assert prefix_cache.num_shared([*text, *tokens, 9]) == len(prefix_cache)
    text = [*text, *tokens[:6], 9]
    result = second.generate(text, max_new_tokens=9, prefix_cache=prefix_cache)
    assert result.stats.cached_tokens > 3
    assert result.token_ids == second.generate_autoregressive(text, max_new_tokens=9).token_ids


def test_a_stream_notes_nothing_in_what_was_cleared():
    decoder, prefix_cache = build("eagle"), PrefixCache()
    stream = decoder.stream([1, 2, 3], max_new_tokens=30, prefix_cache=prefix_cache)
    next(stream)
    prefix_cache.clear()
    tokens = [token_id for piece in stream for token_id in piece.token_ids]
    assert tokens
    assert len(prefix_cache) == 0
    assert decoder.generate([1, 2, 3, *tokens], max_new_tokens=2, prefix_cache=prefix_cache).stats.cached_tokens == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_turn_that_fails_as_it_takes_the_caches_ends_the_stream_that_had_them(error):
    decoder, fresh = decoders("eagle", "full", False)
    prefix_cache, text = PrefixCache(), [1, 2, 3, 4, 5, 6]
    stream = decoder.stream(text, max_new_tokens=40, prefix_cache=prefix_cache)
    tokens = [*next(stream).token_ids, *next(stream).token_ids]

    def refuse(self, capacity):
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KVCache, "_new_buffer", refuse)
        patch.setattr("nanospec.speculation.bucketed_width", lambda num_rows: 10 * num_rows + 1000)
        with pytest.raises(error):
            decoder.generate([*text[:4], 30, 31], max_new_tokens=20, prefix_cache=prefix_cache)
    with pytest.raises(RuntimeError, match="this one was interrupted by another"):
        tokens += [token_id for piece in stream for token_id in piece.token_ids]
    for longer in ([*text, *tokens, 9], [*text[:4], 30, 31, 9]):
        result = decoder.generate(longer, max_new_tokens=9, prefix_cache=prefix_cache)
        assert result.token_ids == fresh.generate_autoregressive(longer, max_new_tokens=9).token_ids


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


PLACES = "target.judge target.prefill target.cache.compact drafter.advance drafter.extend vocab.learn vocab.reset"
PLACES_OF = {
    "joined": "drafter.model.extend drafter.lookup.extend drafter.lookup.resume",
    "causal-lm": "drafter.body.read drafter.resume target.resume",
}
IN_FIXED_STEPS = "drafter.extend_at target.cache.compact_behind vocab.learn target.resume"


@pytest.mark.parametrize("num_calls", [1, 2, 4])
@pytest.mark.parametrize("place", PLACES.split())
def test_after_an_interrupt_anywhere_the_next_turn_is_right(place, num_calls):
    check_turn_after_an_interrupt("eagle", place, num_calls)


@pytest.mark.parametrize(("kind", "place"), [(kind, place) for kind in PLACES_OF for place in PLACES_OF[kind].split()])
def test_after_an_interrupt_of_other_drafters_the_next_turn_is_right(kind, place):
    check_turn_after_an_interrupt(kind, place, 2)


@pytest.mark.parametrize("place", IN_FIXED_STEPS.split())
def test_after_an_interrupt_in_fixed_steps_the_next_turn_is_right(place):
    check_turn_after_an_interrupt("eagle", place, 3, in_fixed_steps)


def check_turn_after_an_interrupt(kind: str, place: str, num_calls: int, prepared=lambda decoder: decoder) -> None:
    decoder, fresh = (prepared(build(kind, "hybrid:5+prior")) for _ in range(2))
    *path, name = place.split(".")
    owner = decoder
    for part in path:
        owner = getattr(owner, part)
    text, prefix_cache, calls = [1, 2, 3], PrefixCache(), []
    method = getattr(owner, name)

    def interrupted(*arguments, **options):
        calls.append(name)
        if len(calls) == num_calls:
            raise KeyboardInterrupt
        return method(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        for _ in range(4):
            try:
                tokens = answer(decoder, text, max_new_tokens=9, prefix_cache=prefix_cache)
            except KeyboardInterrupt:
                tokens = []
            text = [*text, *tokens, 7]
    assert len(calls) >= num_calls
    result = decoder.generate(text, max_new_tokens=9, prefix_cache=prefix_cache)
    expected = fresh.generate(text, max_new_tokens=9)
    assert result.token_ids == expected.token_ids
    assert figures(decoder) == figures(fresh)


def test_without_memory_for_two_caches_at_once_a_longer_turn_reads_its_whole_text(monkeypatch):
    monkeypatch.setattr(step_graphs, "MIN_WIDTH", 16)
    decoder, prefix_cache = build("eagle"), PrefixCache()
    text = [1, 2, 3]
    text += [*decoder.generate(text, max_new_tokens=9, prefix_cache=prefix_cache).token_ids, *[7] * 70]
    new_buffer, refused = KVCache._new_buffer, []

    def limited(self, capacity):
        """As memory that holds one cache of the longer text, but not the old one beside it."""
        if self.capacity:
            refused.append(capacity)
            raise MemoryError("none left")
        return new_buffer(self, capacity)

    with monkeypatch.context() as patch:
        patch.setattr(KVCache, "_new_buffer", limited)
        result = decoder.generate(text, max_new_tokens=9, prefix_cache=prefix_cache)
    assert refused
    assert result.stats.cached_tokens == 0
    assert result.token_ids == decoder.generate_autoregressive(text, max_new_tokens=9).token_ids


def test_without_memory_for_a_longer_text_the_turn_fails_and_a_shorter_one_goes_on(monkeypatch):
    decoder, prefix_cache = build("eagle"), PrefixCache()
    text = [1, 2, 3]
    text += decoder.generate(text, max_new_tokens=9, prefix_cache=prefix_cache).token_ids

    def refuse(self, capacity):
        raise MemoryError("none left")

    with monkeypatch.context() as patch:
        patch.setattr(KVCache, "_new_buffer", refuse)
        patch.setattr("nanospec.speculation.bucketed_width", lambda num_rows: 10 * num_rows)
        with pytest.raises(MemoryError):
            decoder.generate(text, max_new_tokens=20, prefix_cache=prefix_cache)
    for num_cached in (0, len(text) - 1):
        result = decoder.generate(text, max_new_tokens=9, prefix_cache=prefix_cache)
        assert result.stats.cached_tokens == num_cached
        assert result.token_ids == build("eagle").generate_autoregressive(text, max_new_tokens=9).token_ids


@pytest.mark.parametrize("method", ["generate", "stream"])
def test_what_cannot_be_a_prefix_cache_is_refused_by_name(method):
    decoder = build("eagle")
    with pytest.raises(TypeError, match="prefix_cache must be a PrefixCache or None, got dict"):
        getattr(decoder, method)([1, 2], prefix_cache={})
    decoder.target.ranks = SimpleNamespace(size=2)
    with pytest.raises(NotImplementedError, match="prefix_cache must be None with a tensor-parallel target"):
        getattr(decoder, method)([1, 2], prefix_cache=PrefixCache())
