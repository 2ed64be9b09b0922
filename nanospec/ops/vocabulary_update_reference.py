"""What `vocabulary_update` and `vocabulary_pins` mean: a plain least-recently-used set, fed one id at a time."""

from __future__ import annotations

from collections.abc import Iterable


class LruVocabulary:
    """At most `capacity` ids: the pinned ones, which never leave, and the ids seen most recently."""

    def __init__(self, vocab_size: int, capacity: int, pinned_ids: Iterable[int] = ()) -> None:
        self.vocab_size, self.capacity = vocab_size, capacity
        self.pinned = set(pinned_ids)
        self.seen: dict[int, int] = {}  # of every id, when it was seen last
        self.tail: set[int] = set()
        self.clock = self.began = 0

    def observe(self, ids: Iterable[int]) -> None:
        """See `ids`, oldest first; an id outside the vocabulary means "none"."""
        for token_id in ids:
            self.clock += 1
            if not 0 <= token_id < self.vocab_size:
                continue
            self.seen[token_id] = self.clock
            if token_id not in self.pinned:
                self.tail.add(token_id)
                self._make_room()

    def pin(self, ids: Iterable[int]) -> None:
        """`ids` stay until they are released."""
        self.pinned |= set(ids)
        self.tail -= self.pinned
        self._make_room()

    def release(self, ids: Iterable[int]) -> None:
        """Of `ids`, those that were seen go back among the others, the rest leaves."""
        self.pinned -= set(ids)
        self.tail |= self.was_seen().intersection(ids)

    def reset(self, num_kept: int = 0) -> None:
        """Start anew with the `num_kept` ids seen last, which do not count as seen."""
        kept = sorted(self.tail, key=self.seen.__getitem__)[max(len(self.tail) - num_kept, 0) :]
        self.tail.clear()
        self.observe(kept)
        self.began = self.clock

    def was_seen(self) -> set[int]:
        """Every id observed since the reset, in or out."""
        return {token_id for token_id, time in self.seen.items() if time > self.began}

    def active_ids(self) -> set[int]:
        return self.pinned | self.tail

    def _make_room(self) -> None:
        while len(self.pinned) + len(self.tail) > self.capacity:
            self.tail.remove(min(self.tail, key=self.seen.__getitem__))
