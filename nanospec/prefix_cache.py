"""Which text the caches of a target and a drafter hold, so that a request which begins like it reads the rest only."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple
from weakref import ReferenceType

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nanospec.kv_cache import KVCache


class CacheHolder(NamedTuple):
    """Whose text lies in the caches; once anything here is another, what was kept is nobody's any more.

    cache    of the target: two targets over one model have one each
    turn     its count of requests
    marker   of the loop that used the drafter last
    weights  that made the keys and values: where they lie, and how often they were written to
    num_top  best ids of the target that are kept beside every token
    """

    cache: ReferenceType[KVCache]
    turn: int
    marker: object
    weights: tuple[Hashable, ...]
    num_top: int


class _Part(NamedTuple):
    """Positions that were read together: the token after each, and the target's best ids after each, int64 [n, k]."""

    next_ids: list[int]
    top_ids: Tensor


class PrefixCache:
    """What a request leaves in the caches of a decoder for the next one, such as the next turn of a conversation.

        cache = PrefixCache()
        first = decoder.generate(prompt, prefix_cache=cache)
        second = decoder.generate([*prompt, *first.token_ids, *more], prefix_cache=cache)

    Every request is given its whole text and yields what it would without, token for token. Of the text, only what
    follows the longest common beginning is read: at least the last token, and the last step of the answer before.
    `stats.cached_tokens` says how many tokens were not. Draft vocabulary and prior start as they would from the whole
    text: the target's best ids after every token are kept for them, 8 bytes times num_top each.

    Keys and values stay in the caches of target and drafter, which hold one text. The next request reads all of its
    own if another request came in between, if weights have moved, were written to in place or have other adapters, and
    with a drafter that cannot go back (native MTP of several modules, one without `resume`). Call `clear` after changes
    of weights that torch does not count, such as those through `.data`. For one thread at a time.
    """

    def __init__(self) -> None:
        self.holder: CacheHolder | None = None
        self.owner: object = None  # of the one request whose steps are noted here, until another takes its place
        self._first_id = -1
        self._parts: list[_Part] = []  # grows by one append per step, which an interrupt cannot split

    def __len__(self) -> int:
        """Positions of the text that both caches hold, and the token after each."""
        return sum(len(part.next_ids) for part in self._parts)

    def clear(self) -> None:
        """Forget the text: the next request reads all of its own. One that still runs leaves nothing."""
        self.holder, self.owner, self._parts = None, None, []

    def num_shared(self, token_ids: Sequence[int]) -> int:
        """Positions that a text of these tokens need not read again: where it and the token after it are the same.

        Example: after 5 6 7 8, with 8 not read yet, a text 5 6 7 9 shares two positions: 7 is read again, 9 is new.
        """
        if not self._parts or self._first_id != token_ids[0]:
            return 0
        pairs = enumerate(zip(self._next_ids(), token_ids[1:], strict=False))
        return next((place for place, (held, asked) in pairs if held != asked), min(len(self), len(token_ids) - 1))

    def cut(self, num_tokens: int) -> None:
        """Keep the first `num_tokens` positions."""
        kept: list[_Part] = []
        if num_tokens:
            kept.append(_Part(list(self._next_ids())[:num_tokens], self.top_ids()[:num_tokens]))
        self._parts = kept

    def top_ids(self) -> Tensor:
        """int64 [n, num_top]: the target's best ids after every position held, at least one."""
        return torch.cat([part.top_ids for part in self._parts])

    def begin(self, first_id: int, next_ids: list[int], top_ids: Tensor) -> None:
        """A prompt has been read: its first token, the n tokens that follow one another after it, the last of them the
        output's first, and top_ids int64 [n, k]."""
        self._first_id, self._parts = first_id, [_Part(next_ids, top_ids)]

    def append(self, next_ids: list[int], top_ids: Tensor) -> None:
        """A step has been read: its n new tokens, top_ids int64 [n, k] at the nodes before them."""
        self._parts.append(_Part(next_ids, top_ids))

    def _next_ids(self) -> Iterator[int]:
        return chain.from_iterable(part.next_ids for part in self._parts)
