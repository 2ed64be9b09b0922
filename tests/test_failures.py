"""What goes wrong beside the output: bad drafters, interrupts, consumers that leave, memory that cannot be had."""

from __future__ import annotations

import gc
import warnings
import weakref

import pytest
import torch

from nanospec import SpeculativeDecoder
from nanospec.kv_cache import KVCache
from nanospec.speculation import SpeculativeLoop
from nanospec.step_graphs import FixedSteps
from nanospec.token_choice import NonFiniteLogitsError
from tests.tiny_medusa import tiny_medusa
from tests.tiny_pair import tiny_drafter, tiny_target

PROMPT = [4, 9, 4]
FIRST_STEP_WITH_NAN = 3


def pair(vocab: str = "in-context") -> SpeculativeDecoder:
    target = tiny_target(1)
    return SpeculativeDecoder(
        target, tiny_drafter(target, 2, std=0.02), vocab, (3, 3, 8), frequent_ids=torch.arange(20)
    )


def plain_tokens(decoder: SpeculativeDecoder) -> list[int]:
    return decoder.generate_autoregressive(PROMPT, max_new_tokens=20, ignore_eos=True).token_ids


def run_fixed_shapes(decoder: SpeculativeDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps as a captured graph would run them."""
    plain = decoder._speculate

    def with_fixed_steps(*args):
        loop, stats = plain(*args)
        loop.fixed_steps = FixedSteps(loop.decoding_step())
        return loop, stats

    monkeypatch.setattr(decoder, "_speculate", with_fixed_steps)


@pytest.mark.parametrize("is_fixed", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("vocab", ["full", "in-context", "hybrid:9+prior"])
def test_a_drafter_without_finite_scores_is_counted_and_changes_nothing(vocab, bad, is_fixed, monkeypatch):
    decoder = pair(vocab)
    expected = plain_tokens(decoder)
    decoder.drafter.fc.weight.fill_(bad)
    if is_fixed:
        run_fixed_shapes(decoder, monkeypatch)
    with pytest.warns(RuntimeWarning, match="drafter gave no active id a finite score at step 1") as caught:
        result = decoder.generate(PROMPT, max_new_tokens=20, ignore_eos=True)
    assert result.token_ids == expected
    assert len(caught) == 1
    assert result.stats.failed_drafts == result.stats.steps == 19
    assert result.stats.mean_accept_length == 1.0


@pytest.mark.parametrize("way", ["in stages", "in fixed shapes", "in a batch"])
def test_a_rejected_token_whose_keys_are_not_finite_is_an_error_and_never_another_output(way, monkeypatch):
    decoder = pair("full")
    expected, drafted = plain_tokens(decoder), set()
    loop, _ = decoder.speculate(torch.tensor([PROMPT]), decoder.tree, 20)
    loop.on_verdict = lambda tree, verdict, num_accepted: drafted.update(tree.token_ids[0].tolist())
    list(loop.steps())
    if way == "in fixed shapes":
        run_fixed_shapes(decoder, monkeypatch)
    errors = []
    for token_id in sorted(drafted - {*PROMPT, *expected, -1})[:4]:
        row = decoder.target.embed_tokens.weight[token_id]
        before = row.clone()
        with torch.no_grad():
            row.fill_(torch.nan)
        assert plain_tokens(decoder) == expected
        try:
            assert _output(decoder, way) == expected
        except NonFiniteLogitsError as error:
            errors.append(error.position)
        with torch.no_grad():
            row.copy_(before)
    assert len(errors) > 1
    assert _output(decoder, way) == expected


def _output(decoder: SpeculativeDecoder, way: str) -> list[int]:
    options = {"max_new_tokens": 20, "ignore_eos": True}
    if way == "in a batch":
        return dict(decoder.generate_many([PROMPT], tree=decoder.tree, **options))[0].token_ids
    return decoder.generate(PROMPT, **options).token_ids


def test_medusa_heads_without_finite_scores_change_nothing():
    target = tiny_target(1)
    drafter = tiny_medusa(target, 2)
    decoder = SpeculativeDecoder(target, drafter, "in-context", (2, 3, 6))
    expected = plain_tokens(decoder)
    for parameter in drafter.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.warns(RuntimeWarning, match="no active id a finite score"):
        result = decoder.generate(PROMPT, max_new_tokens=20, ignore_eos=True)
    assert (result.token_ids, result.stats.failed_drafts) == (expected, result.stats.steps)


def test_one_bad_pass_of_the_drafter_costs_that_step_only(monkeypatch):
    decoder = pair()
    drafter, expected, calls = decoder.drafter, plain_tokens(decoder), []
    logits = drafter.logits

    def sometimes_bad(states, vocab):
        calls.append(vocab)
        scores = logits(states, vocab)
        return scores.fill_(float("nan")) if len(calls) == FIRST_STEP_WITH_NAN * 3 + 1 else scores

    monkeypatch.setattr(drafter, "logits", sometimes_bad)
    with pytest.warns(RuntimeWarning, match=f"at step {FIRST_STEP_WITH_NAN + 1}"):
        result = decoder.generate(PROMPT, max_new_tokens=20, ignore_eos=True)
    assert (result.token_ids, result.stats.failed_drafts) == (expected, 1)


def test_a_vocabulary_that_is_empty_or_a_drafter_that_scores_nothing_is_no_failed_draft():
    target = tiny_target(1)
    decoder = SpeculativeDecoder(target, tiny_drafter(target, 2), "in-context", (3, 3, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decoder.generate(PROMPT, max_new_tokens=20).stats.failed_drafts == 0


STAGES = "target.judge target.cache.compact drafter.advance drafter.extend drafter.logits vocab.learn".split()


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("place", STAGES)
def test_after_an_interrupt_anywhere_the_decoder_goes_on_as_if_nothing_had_been(place, error, monkeypatch):
    decoder = pair("hybrid:9+prior") if place == "vocab.learn" else pair()
    expected = plain_tokens(decoder)
    *path, name = place.split(".")
    owner = decoder
    for part in path:
        owner = getattr(owner, part)
    calls, method = [], getattr(owner, name)

    def interrupted(*args, **options):
        calls.append(name)
        if len(calls) == 3:
            raise error
        return method(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(error):
            decoder.generate(PROMPT, max_new_tokens=20, ignore_eos=True)
    assert decoder.generate(PROMPT, max_new_tokens=20, ignore_eos=True).token_ids == expected


def test_a_consumer_that_leaves_a_stream_early_leaves_nothing_behind(monkeypatch):
    loops: list[weakref.ref] = []
    begin = SpeculativeLoop.__init__

    def noted(self, *args):
        begin(self, *args)
        loops.append(weakref.ref(self))

    monkeypatch.setattr(SpeculativeLoop, "__init__", noted)
    decoder = pair()
    for _ in range(3):
        for _ in decoder.stream(PROMPT, max_new_tokens=20):
            break
    gc.collect()
    assert [loop() for loop in loops] == [None, None, None]
    assert decoder.generate(PROMPT, max_new_tokens=20, ignore_eos=True).token_ids == plain_tokens(decoder)


def test_a_cache_that_cannot_grow_says_how_much_it_wanted_and_the_next_request_fits(monkeypatch):
    decoder = pair()
    expected = plain_tokens(decoder)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "new_zeros", _refuse)
        with pytest.raises(MemoryError, match=r"cache of \d+ tokens needs [\d,]+ bytes, which could not be had"):
            decoder.generate(PROMPT, max_new_tokens=90, ignore_eos=True)
    assert decoder.generate(PROMPT, max_new_tokens=20, ignore_eos=True).token_ids == expected


def _refuse(*args, **options):
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


def test_a_cache_lets_go_of_its_memory_before_it_asks_for_more():
    cache = KVCache(1, 1, 4, torch.float32, torch.device("cpu"))
    cache.reset(8)
    before = weakref.ref(cache.buffer)
    seen = []
    grow = cache._new_buffer
    cache._new_buffer = lambda capacity: seen.append(before()) or grow(capacity)
    cache.reset(16)
    assert (seen, cache.capacity, cache.length) == ([None], 16, 0)
