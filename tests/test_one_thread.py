"""A decoder in two threads: an error that says so, never tokens of one request in another."""

from __future__ import annotations

import sys
import threading

import pytest
import torch

from nanospec import SpeculativeDecoder, TreeShape, tree_tuning
from nanospec.drafters.joined_drafter import join_prompt_lookup
from nanospec.one_thread import run_alone, steps_of_one_thread
from tests.tiny_pair import tiny_drafter, tiny_target


def pair() -> SpeculativeDecoder:
    target = tiny_target(seed=4)
    return SpeculativeDecoder(target, tiny_drafter(target, 2, std=0.02), "full", TreeShape(3, 3, 8))


def in_another_thread(call) -> list:
    found: list = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found


def refusal(call) -> str:
    """What `call` says in another thread."""

    def message() -> str:
        with pytest.raises(RuntimeError) as error:
            call()
        return str(error.value)

    return in_another_thread(message)[0]


@pytest.mark.parametrize("method", ["generate", "generate_autoregressive"])
def test_a_second_thread_within_a_step_is_refused_and_the_first_goes_on(method):
    decoder = pair()
    other = SpeculativeDecoder(decoder.target, tiny_drafter(decoder.target, 1), "full", TreeShape(1, 1, 2))
    expected = decoder.generate([1, 2], max_new_tokens=10).token_ids
    judge, said = decoder.target.judge, []

    def judge_while_another_comes(*arguments, **options):
        if not said:  # both decoders work on this target
            said.extend(refusal(lambda d=d: getattr(d, method)([5], max_new_tokens=3)) for d in (decoder, other))
        return judge(*arguments, **options)

    decoder.target.judge = judge_while_another_comes
    assert decoder.generate([1, 2], max_new_tokens=10).token_ids == expected
    del decoder.target.judge
    assert len(said) == 2
    assert all("a Target works for one thread at a time" in message for message in said)
    assert in_another_thread(lambda: getattr(decoder, method)([1, 2], max_new_tokens=10).token_ids) == [expected]


def bare_loop(decoder: SpeculativeDecoder) -> None:
    loop, _ = decoder.speculate(torch.tensor([[5, 6]]), decoder.tree, 4)
    list(loop.steps())


@pytest.mark.parametrize(
    "call", [lambda decoder: decoder.warm_up(), bare_loop, lambda decoder: decoder.batch_engine(2, "auto")]
)
def test_nothing_that_decodes_disturbs_the_last_step_of_another_thread(call):
    decoder = pair()
    expected = decoder.generate([1, 2], max_new_tokens=10).token_ids
    num_steps, judge, said = decoder.last_stats.steps, decoder.target.judge, []
    num_judged = 0

    def judge_while_another_comes(*arguments, **options):
        nonlocal num_judged
        num_judged += 1
        if num_judged == num_steps:
            said.append(refusal(lambda: call(decoder)))
        return judge(*arguments, **options)

    decoder.target.judge = judge_while_another_comes
    assert decoder.generate([1, 2], max_new_tokens=10).token_ids == expected
    assert len(said) == 1
    assert "a Target works for one thread at a time" in said[0]


def test_a_second_thread_is_refused_while_a_tree_is_measured_and_its_request_may_come_before(monkeypatch):
    decoder, said = pair(), []
    decoder.generate([1], max_new_tokens=1)
    decoder.target.reset(2)  # a short request of another thread: its cache has no room for what is measured
    best_seconds = tree_tuning.best_seconds

    def while_another_comes(*arguments):
        said.append(refusal(lambda: decoder.generate([5], max_new_tokens=3)))
        return best_seconds(*arguments)

    monkeypatch.setattr(tree_tuning, "best_seconds", while_another_comes)
    assert tree_tuning._verify_seconds(decoder, 12) > 0
    assert "a Target works for one thread at a time" in said[0]


def test_drafters_that_share_a_part_are_one():
    model, device = tiny_drafter(tiny_target(seed=4), 2), torch.device("cpu")
    first, second = (
        SpeculativeDecoder(tiny_target(seed=4), join_prompt_lookup(model, device), "full", TreeShape(2, 2, 4))
        for _ in range(2)
    )
    judge, said = first.target.judge, []

    def judge_while_another_comes(*arguments, **options):
        said.append(refusal(lambda: second.generate([5], max_new_tokens=3)))
        return judge(*arguments, **options)

    first.target.judge = judge_while_another_comes
    first.generate([1, 2], max_new_tokens=2)
    assert "a EagleDrafter works for one thread at a time" in said[0]


class Owner:
    pass


def test_what_is_held_is_free_again_after_an_error_and_between_steps():
    first, second = Owner(), Owner()

    def fails():
        raise KeyError

    with pytest.raises(KeyError):
        run_alone(fails, first, second, first)
    steps = steps_of_one_thread(iter([1, 2]), first)
    assert next(steps) == 1
    assert run_alone(lambda: 3, first, second) == 3

    def refused_within():
        with pytest.raises(RuntimeError, match="a Owner works for one thread"):
            run_alone(lambda: 4, first, second)
        return run_alone(lambda: 5, first)  # what comes before the refusal is not taken

    assert run_alone(refused_within, second) == 5
    assert list(steps) == [2]


def interrupted_at(number: int, call) -> BaseException | None:
    """A KeyboardInterrupt raised at one of the points where Python looks for signals: where one of its functions begins
    and where a built-in one has returned. None if `call` passes fewer of them."""
    num_passed = 0

    def count(frame, event, argument) -> None:
        nonlocal num_passed
        num_passed += event in ("call", "c_return")
        if num_passed == number:
            raise KeyboardInterrupt

    try:
        sys.setprofile(count)
        call()
    except KeyboardInterrupt as error:
        return error
    finally:
        sys.setprofile(None)
    return None


def test_after_an_interrupt_anywhere_every_thread_may_come_in():
    errors: list[BaseException | None] = []  # as an interactive session keeps the last one, frames and all
    while not errors or errors[-1] is not None:
        first, second = Owner(), Owner()
        steps = steps_of_one_thread(iter([1, 2]), first, second)
        errors.append(interrupted_at(len(errors) + 1, lambda steps=steps: list(steps)))
        assert run_alone(lambda: 3, first, second) == 3
        assert in_another_thread(lambda owners=(first, second): run_alone(lambda: 4, *owners)) == [4]
    assert len(errors) > 20
