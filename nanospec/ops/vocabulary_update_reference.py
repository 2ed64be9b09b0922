"""What `vocabulary_update` means: a plain least-recently-used set, fed one id at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable


class LruVocabulary:
    """At most `capacity` ids: the pinned ones, which never leave, and the ids seen most recently."""

    def __init__(self, vocab_size: int, capacity: int, pinned_ids: Iterable[int] = ()) -> None:
        self.vocab_size = vocab_size
        self.pinned = frozenset(pinned_ids)
        self.tail_capacity = capacity - len(self.pinned)
        self.tail: OrderedDict[int, None] = OrderedDict()

    def observe(self, ids: Iterable[int]) -> None:
        """See `ids`, oldest first; an id outside the vocabulary means "none"."""
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size or token_id in self.pinned:
                continue
            self.tail.pop(token_id, None)
            self.tail[token_id] = None
            if len(self.tail) > self.tail_capacity:
                self.tail.popitem(last=False)

    def reset(self) -> None:
        self.tail.clear()

    def active_ids(self) -> set[int]:
        return {*self.pinned, *self.tail}
