"""Many requests through one decoder: read as rows become free, each ended by its own rules, on every kind of target."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec import SpeculativeDecoder, Target, TreeShape, VocabSelector
from nanospec.batch.generate import generate_all
from nanospec.successor_prior import SuccessorPrior
from nanospec.token_choice import NonFiniteLogitsError
from nanospec.vocab.routed import RoutedVocab
from nanospec.vocab.with_prior import PriorVocab
from tests.tiny_families import VOCAB_SIZE as FAMILY_VOCAB_SIZE
from tests.tiny_families import family_drafter, family_model
from tests.tiny_pair import VOCAB_SIZE, tiny_drafter, tiny_eagle3_drafter, tiny_eagle3_target, tiny_target
from tests.tiny_router import tiny_router

TREE = TreeShape(3, 3, 8)
SAMPLINGS = (
    {},
    {"temperature": 0.9, "seed": 1},
    {"temperature": 0.9, "top_k": 9, "repetition_penalty": 1.3, "seed": 2},
)


def pair(policy: str = "in-context", window: int = 128, **options) -> SpeculativeDecoder:
    target = tiny_target(seed=4, window=window)
    return SpeculativeDecoder(target, tiny_drafter(target, 2, std=0.02), policy, TREE, capacity=30, **options)


def assert_each_is_plain(decoder: SpeculativeDecoder, requests: list[dict], max_batch: int) -> dict:
    results = dict(decoder.generate_many(requests, max_batch))
    assert sorted(results) == list(range(len(requests)))
    for place, request in enumerate(requests):
        plain = decoder.generate_autoregressive(**request)
        assert results[place].token_ids == plain.token_ids
        assert (results[place].text, results[place].finish_reason) == (plain.text, plain.finish_reason)
    return results


def ragged(vocab_size: int, lengths: tuple[int, ...], max_new_tokens: int) -> list[dict]:
    generator = torch.Generator().manual_seed(len(lengths))
    return [
        {
            "input_ids": torch.randint(vocab_size, (length,), generator=generator).tolist(),
            "max_new_tokens": max_new_tokens,
            **SAMPLINGS[place % len(SAMPLINGS)],
        }
        for place, length in enumerate(lengths)
    ]


def test_prompts_of_one_token_and_at_the_end_of_the_window_run_together():
    results = assert_each_is_plain(pair(window=24), ragged(VOCAB_SIZE, (1, 23, 7, 22, 1, 15), 40), 3)
    assert [len(results[place].token_ids) for place in range(6)] == [23, 1, 17, 2, 23, 9]


class Letters:
    """A tokenizer whose tokens are letters."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(chr(97 + token_id % 26) for token_id in token_ids)


@settings(max_examples=8)
@given(st.lists(st.text("abcdefghij", min_size=1, max_size=2), min_size=3, max_size=3), st.integers(0, VOCAB_SIZE - 1))
def test_every_row_has_its_own_stop_strings_and_end(stops, eos_id):
    decoder = pair(tokenizer=Letters())
    decoder.eos_ids = frozenset([eos_id])
    requests = ragged(VOCAB_SIZE, (3, 1, 5, 2, 8), 16)
    for place, stop in enumerate(stops):
        requests[place]["stop_strings"] = [stop]
    requests[4]["ignore_eos"] = True
    assert_each_is_plain(decoder, requests, 3)


@pytest.mark.parametrize(("stops", "error"), [(("",), ValueError), ((1,), TypeError), (None, TypeError)])
def test_stop_strings_that_are_none_are_refused_before_they_cost_a_neighbour(stops, error):
    decoder = pair(tokenizer=Letters())
    engine = decoder.batch_engine(2)
    engine.submit([1, 2], max_new_tokens=12)
    pieces = engine.step()
    with pytest.raises(error, match="stop_strings must "):
        engine.submit([3], stop_strings=stops)
    assert engine.num_waiting == 0
    while engine.num_running:
        pieces += engine.step()
    tokens = [token for piece in pieces for token in piece.piece.token_ids]
    assert tokens == decoder.generate_autoregressive([1, 2], max_new_tokens=12).token_ids


# Windows of a few tokens on some layers or on all, a soft-cap, experts, a switch of the rotation.
@pytest.mark.parametrize("family", ["gemma2", "mistral-window", "mixtral-window", "phi3-longrope", "qwen3-window"])
def test_targets_with_windows_caps_and_experts_run_in_a_batch(family):
    target = Target(family_model(family))
    decoder = SpeculativeDecoder(target, family_drafter(target), "in-context", TREE)
    assert_each_is_plain(decoder, ragged(FAMILY_VOCAB_SIZE, (1, 12, 30, 4), 14), 3)


@pytest.mark.parametrize(("policy", "num_rows"), [("in-context+prior", 40), ("static:30", 40), ("full", VOCAB_SIZE)])
def test_eagle3_drafts_with_its_own_head_run_in_a_batch(policy, num_rows):
    target = tiny_eagle3_target(3)
    target = Target(target.model, None, tiny_eagle3_drafter(target, 1).feature_layers)
    drafter = tiny_eagle3_drafter(target, 1, num_rows)
    decoder = SpeculativeDecoder(target, drafter, policy, TREE, frequent_ids=torch.arange(VOCAB_SIZE))
    requests = ragged(VOCAB_SIZE, (1, 9, 4, 6), 12)
    results = assert_each_is_plain(decoder, requests, 3)
    for place, request in enumerate(requests):
        stats, alone = results[place].stats, decoder.generate(**request).stats
        assert (stats.steps, stats.step_tokens) == (alone.steps, alone.step_tokens)
        assert (stats.observed_ids, stats.unsayable_ids) == (alone.observed_ids, alone.unsayable_ids)


@pytest.mark.parametrize("prior", [False, True])
def test_a_routed_vocabulary_follows_the_states_of_each_row(prior):
    target = tiny_target(seed=3)
    vocab: VocabSelector = RoutedVocab(target.head_weight, tiny_router(target.head_weight, 3), (9, 6))
    vocab = PriorVocab(vocab, SuccessorPrior(VOCAB_SIZE)) if prior else vocab
    decoder = SpeculativeDecoder(target, tiny_drafter(target, 2, std=0.02), vocab, TREE)
    requests = ragged(VOCAB_SIZE, (1, 5, 3, 9), 15)
    results = assert_each_is_plain(decoder, requests, 3)
    for place, request in enumerate(requests):
        assert results[place].stats.steps == decoder.generate(**request).stats.steps


class Source:
    """Requests that count how many of them were read."""

    def __init__(self, num_requests: int) -> None:
        self.num_requests, self.num_read = num_requests, 0

    def __iter__(self) -> Iterator[list[int]]:
        for index in range(self.num_requests):
            self.num_read += 1
            yield [1 + index, 2]


def test_a_request_is_read_when_there_is_a_row_for_it():
    source, num_finished = Source(12), 0
    for _, result in pair().generate_many(source, max_batch=3, max_new_tokens=6):
        num_finished += 1
        assert source.num_read <= num_finished + 3
        assert len(result.token_ids) == 6
    assert num_finished == source.num_read == 12


def test_an_iterator_left_early_closes_its_engine_and_the_decoder_goes_on():
    decoder = pair()
    expected = decoder.generate([3, 1], max_new_tokens=20).token_ids
    engine = decoder.batch_engine(2)
    results = generate_all(engine, Source(9), {"max_new_tokens": 5})
    next(results)
    results.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.step()
    assert decoder.generate([3, 1], max_new_tokens=20).token_ids == expected
    assert dict(decoder.generate_many([[3, 1]], max_new_tokens=20))[0].token_ids == expected


def test_settings_hold_where_a_request_has_none_of_its_own():
    requests = [[1, 2], torch.tensor([3, 4]), {"input_ids": [5], "max_new_tokens": 2}]
    results = dict(pair().generate_many(requests, max_new_tokens=4, temperature=0.5, seed=3))
    assert [len(results[place].token_ids) for place in range(3)] == [4, 4, 2]
    assert results[1].token_ids == pair().generate([3, 4], max_new_tokens=4, temperature=0.5, seed=3).token_ids


@pytest.mark.parametrize(
    ("requests", "error", "message"),
    [
        ([[1, 2], [VOCAB_SIZE]], ValueError, r"input_ids must lie in \[0, 61\), got 61"),
        ([{"ids": [1]}], ValueError, r"a request must hold input_ids, got \['ids'\]"),
        ([{"input_ids": [1], "max_new_tokens": 0}], ValueError, "max_new_tokens must be at least 1, got 0"),
        ([[1], []], ValueError, "got an empty prompt"),
        ([{"input_ids": [1], "stop": "x"}], TypeError, "settings must be among .* did you mean 'stop_strings'"),
        ([[1], None, [2]], TypeError, r"input_ids must be integers of 64 bits, \[P\] or \[1, P\], got None"),
    ],
)
def test_a_bad_request_is_an_error_when_it_is_read(requests, error, message):
    with pytest.raises(error, match=message):
        list(pair().generate_many(requests, max_new_tokens=3))


def test_no_requests_are_no_results():
    assert list(pair().generate_many([])) == []


def test_bad_target_logits_are_an_error_that_names_the_position():
    decoder = pair("full")
    with torch.no_grad():
        decoder.target.embed_tokens.weight[7] = torch.nan
    with pytest.raises(NonFiniteLogitsError, match="after position 2") as error:
        list(decoder.generate_many([[1, 2], [1, 2, 7]], max_new_tokens=4))
    assert error.value.__notes__ == ["in request 1"]


def test_a_drafter_of_nan_logits_changes_nothing():
    decoder = pair("full")
    expected = decoder.generate_autoregressive([4, 4], max_new_tokens=15).token_ids
    decoder.drafter.fc.weight.fill_(torch.nan)
    with pytest.warns(RuntimeWarning, match="the drafter gave no active id a finite score"):
        results = dict(decoder.generate_many([[4, 4]] * 3, max_new_tokens=15))
    assert [results[place].token_ids for place in range(3)] == [expected] * 3
    assert results[0].stats.mean_accept_length == 1.0
    assert results[0].stats.failed_drafts == results[0].stats.steps == 14
