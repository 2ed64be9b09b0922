"""One thread at a time: what holds the memory of a request refuses a second thread instead of mixing their tokens."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

Item = TypeVar("Item")

# Beside their owners, not in them: an owner can still be copied.
_locks: WeakKeyDictionary[Any, threading.Lock] = WeakKeyDictionary()
_making = threading.Lock()


@contextmanager
def one_thread(*owners: object) -> Iterator[None]:
    """Nobody else is inside with one of `owners`; RuntimeError, at once, if another thread is."""
    with ExitStack() as held:
        for owner in dict.fromkeys(owners):
            with _making:
                lock = _locks.setdefault(owner, threading.Lock())
            if not lock.acquire(blocking=False):
                raise RuntimeError(
                    f"a {type(owner).__name__} works for one thread at a time: another thread is inside a step of it"
                )
            held.callback(lock.release)
        yield


def steps_of_one_thread(steps: Iterator[Item], *owners: object) -> Iterator[Item]:
    """`steps`, each of them inside `one_thread`; between two steps other threads may come in."""
    while True:
        with one_thread(*owners):
            try:
                item = next(steps)
            except StopIteration:
                return
        yield item
