"""One thread at a time: what holds the memory of a request refuses a second thread instead of mixing their tokens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from functools import partial, wraps
from inspect import GEN_RUNNING, getgeneratorstate
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import ReferenceType, WeakKeyDictionary, ref

Item = TypeVar("Item")
Owner = TypeVar("Owner")
Arguments = ParamSpec("Arguments")
Run = Generator[Any, None, None]

# Who was inside last. Nothing is ever given back, which an interrupt could prevent: a run is inside as long as Python
# runs its frame. Beside the owners, not in them: an owner can still be copied.
_last_runs: WeakKeyDictionary[Any, ReferenceType[Run]] = WeakKeyDictionary()
_entering = threading.Lock()


def steps_of_one_thread(steps: Iterator[Item], *owners: object) -> Iterator[Item]:
    """`steps`, each of them with nobody else inside with one of `owners`; between two steps other threads may come in.

    RuntimeError, at once, where another thread is inside, or this one further out.
    """
    own: list[ReferenceType[Run]] = []
    run = _run(steps, owners, own)
    own.append(ref(run))
    return run


def run_alone(call: Callable[[], Item], *owners: object) -> Item:
    """What `call` returns, run as one step of `steps_of_one_thread`."""
    return next(steps_of_one_thread((call() for _ in range(1)), *owners))


def alone(
    method: Callable[Concatenate[Owner, Arguments], Item],
) -> Callable[Concatenate[Owner, Arguments], Item]:
    """The method, run as one step of `steps_of_one_thread` for its object."""

    @wraps(method)
    def run_method(self: Owner, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Item:
        return run_alone(partial(method, self, *args, **kwargs), self)

    return run_method


def _run(steps: Iterator[Item], owners: tuple[object, ...], own: list[ReferenceType[Run]]) -> Generator[Item]:
    while True:
        _enter(owners, own[0])
        try:
            item = next(steps)
        except StopIteration:
            return
        yield item


def _enter(owners: tuple[object, ...], own: ReferenceType[Run]) -> None:
    """The run `own`, which Python runs now, becomes the last one of the owners."""
    with _entering:
        for owner in owners:
            last = _last_runs.get(owner, own)
            run = None if last is own else last()
            if run is not None and getgeneratorstate(run) == GEN_RUNNING:
                raise RuntimeError(
                    f"a {type(owner).__name__} works for one thread at a time: another thread is inside a step of it"
                )
        for owner in owners:
            _last_runs[owner] = own
