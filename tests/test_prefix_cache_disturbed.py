"""What comes between two requests with one prefix cache, or ends one of them in the middle."""

from __future__ import annotations

import pytest
import torch

import nanospec.step_graphs as step_graphs
from nanospec import PrefixCache, SpeculativeDecoder
from nanospec.kv_cache import KVCache
from nanospec.target import Target
from tests.turns import TREE, answer, build, decoders, figures, in_fixed_steps


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
