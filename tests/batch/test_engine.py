"""Requests in company: submitted, stepped, cancelled, refilled in any order, each yields the tokens it yields alone."""

from __future__ import annotations

import threading
import weakref
from functools import cache
from operator import attrgetter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nanospec import GenerationResult, SpeculativeDecoder, StaticTree, Target, TreeShape
from nanospec.drafters.medusa import MedusaDrafter
from tests.tiny_medusa import tiny_medusa
from tests.tiny_pair import VOCAB_SIZE, tiny_drafter, tiny_model, tiny_target

FREQUENT = torch.randperm(VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
TREES = (TreeShape(3, 3, 10), TreeShape(1, 2, 3), TreeShape(4, 2, 8), StaticTree([(0,), (1,), (0, 0)]))
POLICIES = ("full", "in-context", "static:7", "hybrid:5+prior", "static:60+prior")
GREEDY = {"temperature": 0.0}
SAMPLINGS = (
    GREEDY,
    GREEDY,
    {"temperature": 0.8, "seed": 3},
    {"temperature": 0.8, "seed": 4},
    {"temperature": 1.3, "top_p": 0.8, "repetition_penalty": 1.4, "seed": 5},
    {"repetition_penalty": 1.2},
)


@cache
def pair(policy: str = "in-context") -> SpeculativeDecoder:
    target = tiny_target(seed=4)
    drafter = tiny_drafter(target, 2, std=0.02)
    return SpeculativeDecoder(target, drafter, policy, TREES[0], frequent_ids=FREQUENT, capacity=30)


class Request:
    """Number `index` of a fixed list: ragged prompts, ends and ways to choose."""

    def __init__(self, index: int) -> None:
        generator = torch.Generator().manual_seed(index)
        length, end = (1 + int(torch.randint(most, (), generator=generator)) for most in (20, 16))
        self.input_ids = torch.randint(VOCAB_SIZE, (length,), generator=generator)
        self.settings = {"max_new_tokens": end, **SAMPLINGS[index % len(SAMPLINGS)]}

    def alone(self, policy: str) -> GenerationResult:
        """What plain decoding gives."""
        return pair(policy).generate_autoregressive(self.input_ids, **self.settings)


@cache
def plain(index: int) -> list[int]:
    return Request(index).alone("full").token_ids


class Batch(RuleBasedStateMachine):
    """The engine beside what it must hold; every finished request is compared with plain decoding."""

    @initialize(policy=st.sampled_from(POLICIES), tree=st.sampled_from(TREES), max_batch=st.integers(1, 4))
    def begin(self, policy, tree, max_batch):
        self.engine = pair(policy).batch_engine(max_batch, tree)
        self.live: dict[int, int] = {}
        self.partial: dict[int, list[int]] = {}

    @rule(index=st.integers(0, 30))
    def submit(self, index):
        handle = self.engine.submit(Request(index).input_ids, **Request(index).settings)
        self.live[handle], self.partial[handle] = index, []

    @rule()
    def step(self):
        for piece in self.engine.step():
            self.partial[piece.handle] += piece.piece.token_ids
            expected = plain(self.live[piece.handle])
            assert self.partial[piece.handle] == expected[: len(self.partial[piece.handle])]
            if piece.result is not None:
                assert piece.result.token_ids == expected
                assert piece.result.finish_reason == "length"
                del self.live[piece.handle]

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data):
        handle, running = data.draw(st.sampled_from(sorted(self.live))), self.engine.num_running
        waited = handle in [entry for entry, _ in self.engine._waiting]
        self.engine.cancel(handle)
        del self.live[handle]
        assert self.engine.num_running == running - (not waited)

    @invariant()
    def holds_what_is_live(self):
        if hasattr(self, "engine"):
            assert self.engine.num_running + self.engine.num_waiting == len(self.live)
            assert self.engine.num_running <= self.engine.max_batch

    def teardown(self):
        while getattr(self, "live", None):
            self.step()


TestBatch = Batch.TestCase
TestBatch.settings = settings(max_examples=20, stateful_step_count=20)


@settings(max_examples=15)
@given(
    policy=st.sampled_from(POLICIES),
    index=st.integers(0, 30),
    others=st.lists(st.integers(0, 30), max_size=5),
    place=st.integers(0, 5),
    max_batch=st.integers(1, 4),
)
def test_a_request_takes_the_same_steps_in_any_company(policy, index, others, place, max_batch):
    """Not its tokens alone: trees, accept lengths and vocabularies are its own, too."""
    indices = [*others[:place], index, *others[place:]]
    requests = [{"input_ids": Request(i).input_ids, **Request(i).settings} for i in indices]
    results = dict(pair(policy).generate_many(requests, max_batch, TREES[0]))
    alone = pair(policy).generate(**requests[min(place, len(others))])
    result = results[min(place, len(others))]
    assert result.token_ids == alone.token_ids
    for name in ("new_tokens", "target_passes", "steps", "step_tokens", "active_rows"):
        assert getattr(result.stats, name) == getattr(alone.stats, name)


def test_a_cancelled_request_leaves_its_row_at_once_to_the_next():
    engine = pair().batch_engine(2)
    first, second, third = (engine.submit([1, 2, n], max_new_tokens=30) for n in range(3))
    engine.step()
    assert (engine.num_running, engine.num_waiting) == (2, 1)
    engine.cancel(first)
    assert (engine.num_running, engine.num_waiting) == (1, 1)
    assert {piece.handle for piece in engine.step()} == {second, third}
    for handle in (first, 99, 0):
        with pytest.raises(ValueError, match=f"handle must be of a request that runs or waits, got {handle}"):
            engine.cancel(handle)


class NanRow:
    """The head of a batch's target, whose logits of one row become NaN."""

    def __init__(self, engine, row: int) -> None:
        self.head, self.row = engine.rows.target.head, row
        engine.rows.target.head = self

    def __call__(self, hidden):
        logits = self.head(hidden)
        logits[self.row] = torch.nan
        return logits


def test_bad_logits_end_their_own_request_with_the_position_and_no_other():
    engine = pair().batch_engine(3)
    prompts = [[1, 2], [3, 4, 5], [6]]
    handles = [engine.submit(prompt, max_new_tokens=20) for prompt in prompts]
    pieces = engine.step()
    num_tokens = sum(len(piece.piece.token_ids) for piece in pieces if piece.handle == handles[1])
    broken = NanRow(engine, 1)
    failed = [piece for piece in engine.step() if piece.error is not None]
    assert [piece.handle for piece in failed] == handles[1:2]
    assert failed[0].error.position == len(prompts[1]) + num_tokens - 1
    engine.rows.target.head = broken.head
    results = {}
    while engine.num_running:
        results |= {piece.handle: piece.result for piece in engine.step() if piece.result}
    for place in (0, 2):
        expected = pair().generate_autoregressive(prompts[place], max_new_tokens=20).token_ids
        assert results[handles[place]].token_ids == expected


def test_what_a_bad_request_left_does_not_reach_the_next_in_its_row():
    engine = pair().batch_engine(1)
    engine.submit([1, 2], max_new_tokens=20)
    engine.step()
    for cache_ in (engine.rows.target.cache, engine.rows.drafter.cache):
        cache_.buffer.fill_(torch.nan)
    assert engine.step()[0].error is not None
    handle = engine.submit([3, 4, 5], max_new_tokens=20)
    results = {}
    while engine.num_running + engine.num_waiting:
        results |= {piece.handle: piece.result for piece in engine.step() if piece.result}
    expected = pair().generate([3, 4, 5], max_new_tokens=20)
    assert results[handle].token_ids == expected.token_ids


def test_closing_frees_the_memory_and_later_calls_say_so():
    engine = pair().batch_engine(2)
    engine.submit([1, 2], max_new_tokens=20)
    engine.step()
    memory = weakref.ref(engine.rows)
    engine.close()
    assert memory() is None
    engine.close()
    for call in (engine.step, lambda: engine.submit([1]), lambda: engine.rows):
        with pytest.raises(RuntimeError, match="the batch engine is closed: make another"):
            call()


def test_a_torn_step_is_no_state_to_go_on_from(monkeypatch):
    engine = pair().batch_engine(2)
    engine.submit([1, 2], max_new_tokens=20)
    with monkeypatch.context() as patch:
        patch.setattr(engine._step, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    with pytest.raises(RuntimeError, match="torn by an exception within a step: make another"):
        engine.step()
    engine.close()
    assert (
        pair().generate([1, 2], max_new_tokens=5).token_ids == pair("full").generate([1, 2], max_new_tokens=5).token_ids
    )


def interrupted(*arguments):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "place", ["rows.drafter.cache.grow", "_prompt_target.cache.reset", "_prompt_drafter.cache.reset"]
)
def test_without_memory_for_a_request_the_others_go_on_as_soon_as_it_is_cancelled(place, monkeypatch):
    engine = pair().batch_engine(2)
    first = engine.submit([1, 2], max_new_tokens=30)
    pieces = engine.step()
    large = engine.submit([3, 4], max_new_tokens=100)
    with monkeypatch.context() as patch:
        path, name = place.rsplit(".", 1)
        patch.setattr(attrgetter(path)(engine), name, without_memory)
        with pytest.raises(MemoryError):
            engine.step()
        assert (engine.num_running, engine.num_waiting) == (1, 1)
    engine.cancel(large)
    while engine.num_running:
        pieces += engine.step()
    tokens = [token for piece in pieces for token in piece.piece.token_ids]
    assert {piece.handle for piece in pieces} == {first}
    assert tokens == pair().generate_autoregressive([1, 2], max_new_tokens=30).token_ids


def without_memory(capacity):
    raise MemoryError


def test_a_second_thread_inside_a_step_is_told_so(monkeypatch):
    engine, entered, leave = pair().batch_engine(2), threading.Event(), threading.Event()
    engine.submit([1, 2], max_new_tokens=3)
    run = engine._step.run

    def waiting_run(*arguments):
        entered.set()
        assert leave.wait(60), "the test sets it"
        return run(*arguments)

    monkeypatch.setattr(engine._step, "run", waiting_run)
    thread = threading.Thread(target=engine.step)
    thread.start()
    assert entered.wait(60), "the step runs"
    try:
        for call in (engine.step, lambda: engine.submit([1]), lambda: engine.cancel(1), engine.close):
            with pytest.raises(RuntimeError, match="BatchEngine works for one thread at a time"):
                call()
    finally:
        leave.set()
        thread.join()
    assert engine.num_running <= 1


def test_a_batch_and_single_requests_of_one_decoder_do_not_disturb_each_other():
    decoder, results = pair(), {}
    engine = decoder.batch_engine(2)
    handles = [engine.submit(Request(i).input_ids, **Request(i).settings) for i in range(4)]
    for index in range(100):
        if not engine.num_running + engine.num_waiting:
            break
        results |= {piece.handle: piece.result for piece in engine.step() if piece.result}
        assert decoder.generate(Request(index % 9).input_ids, **Request(index % 9).settings).token_ids == plain(
            index % 9
        )
    assert [results[handle].token_ids for handle in handles] == [plain(index) for index in range(4)]


def test_what_serves_no_batch_is_refused_by_name():
    target = tiny_target(1)
    drafter = tiny_medusa(target, 1)
    assert isinstance(drafter, MedusaDrafter)
    with pytest.raises(NotImplementedError, match="drafter must be EAGLE's in a batch, got MedusaDrafter"):
        SpeculativeDecoder(target, drafter, "full", TreeShape(1, 2, 3)).batch_engine(2)
    compiled = SpeculativeDecoder(target, tiny_drafter(target, 1), "full", TREES[0], compile="eager")
    with pytest.raises(NotImplementedError, match="compile must be False in a batch, got 'eager'"):
        compiled.batch_engine(2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0,), ValueError, "max_batch must be at least 1, got 0"),
        ((True,), TypeError, "max_batch must be an int, got True"),
        ((2, (1, 9, 4)), ValueError, "branching must be at most 7, the rows of the vocabulary"),
        ((2, "wide"), ValueError, "tree must be 'auto', None or .*, got 'wide'"),
    ],
)
def test_bad_options_name_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        pair("static:7").batch_engine(*arguments)


def decode_all(decoder: SpeculativeDecoder, results: list) -> None:
    for index in range(6):
        results.append(decoder.generate(Request(index).input_ids, **Request(index).settings).token_ids)
    requests = [{"input_ids": Request(i).input_ids, **Request(i).settings} for i in range(6)]
    batch = dict(decoder.generate_many(requests, 3))
    results += [batch[index].token_ids for index in range(6)]


def test_two_decoders_over_one_model_decode_in_two_threads():
    model = tiny_model(4)
    results: list[list] = [[], []]
    threads = []
    for found in results:
        target = Target(model)
        decoder = SpeculativeDecoder(target, tiny_drafter(target, 2, std=0.02), "in-context", TREES[0])
        threads.append(threading.Thread(target=decode_all, args=(decoder, found)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [plain(index) for index in range(6)] * 2
    assert results == [expected, expected]
