"""The interface between a draft model and the tree that is grown with it."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from nanospec.gathered_head import GatheredHead
from nanospec.kv_cache import CachePlace
from nanospec.records import DraftVocab


@runtime_checkable
class Drafter(Protocol):
    """A draft model with its own cache. States [B, n, D] are opaque to the tree drafter.

    The order of calls in one decoding step is `extend` once, then `logits` and `advance` in turn, level by level.
    """

    name: str

    @property
    def dtype(self) -> torch.dtype | None:
        """Of its weights and states: the target's; None: it has no weights."""

    def reset(self, capacity: int) -> None:
        """Forget the last request and make room for `capacity` tokens, the nodes of one tree included."""

    def extend(self, token_ids: Tensor, features: Tensor) -> Tensor:
        """Take in verified tokens.

        token_ids int64 [B, n] and the target's features [B, n, D] at the positions just before them; what a tree left
        in the cache is overwritten. Returns the state [B, 1, D] after the last token.
        """

    def advance(self, token_ids: Tensor, states: Tensor, depth: int, visible: Tensor) -> Tensor:
        """Run one level of the tree behind the verified tokens and the levels before.

        token_ids int64 [B, m] at tree depth `depth` (1 for children of the root), states [B, m, D] of their parents,
        visible bool [B, m, depth * m]: which nodes of the levels run so far, this one included, each node may attend
        to. Returns their states [B, m, D].
        """

    def logits(self, states: Tensor, vocab: DraftVocab) -> Tensor:
        """[B, n, K] scores of the draft vocabulary for the token after each state; -inf in columns from count on."""


@runtime_checkable
class DepthLimited(Protocol):
    """A drafter that drafts no more than so many levels."""

    @property
    def max_depth(self) -> int:
        """Levels of the deepest tree that it can grow."""


@runtime_checkable
class TakesFirstToken(Protocol):
    """A drafter that reads the text from its first token on, which `extend` never gets: no feature stands before it."""

    def begin(self, first_id: Tensor) -> None:
        """Take in int64 [B, 1], the prompt's first token, between `reset` and the first `extend`."""


@runtime_checkable
class Resumable(Protocol):
    """A drafter that can go back in a text that it has taken in: what begins like it need not be taken in again."""

    def resume(self, num_tokens: int, capacity: int) -> int:
        """As `reset`, but it stays as it was when `extend` had been given the features of the first `num_tokens`
        positions, at least 1. Returns `num_tokens`, or 0 where that cannot be: then `reset` must follow."""


@runtime_checkable
class HasHead(Protocol):
    """A drafter that scores ids with one head, the target's or its own: draft vocabularies are made of its rows."""

    @property
    def head(self) -> GatheredHead:
        """Weight [rows, D] and bias."""

    @property
    def target_ids(self) -> Tensor | None:
        """int64 [rows], the target's id that each row scores; None: row i scores id i, and all ids have a row."""


@runtime_checkable
class FixedShapeDrafter(Drafter, Protocol):
    """A drafter whose passes can take place where only the device knows: what a captured decoding step needs.

    A `CachePlace` counts the target's certain tokens. That is without the root, and so are EAGLE's, which lack the
    first token; a drafter that takes it in holds one more.
    """

    @property
    def state_size(self) -> int:
        """D of its states [B, n, D]."""

    def memory(self) -> Any:
        """What its passes work on, prepared by `reset`: plain tensors that stay where they are until the next one."""

    def advance_at(
        self, token_ids: Tensor, states: Tensor, depth: int, visible: Tensor, place: CachePlace, memory: Any
    ) -> Tensor:
        """As `advance`."""

    def extend_at(
        self, token_ids: Tensor, features: Tensor, num_tokens: Tensor, place: CachePlace, memory: Any
    ) -> Tensor:
        """As `extend`, by the first `num_tokens` int64 [1] of token_ids [1, n]; what follows them is rubbish."""

    def commit(self, num_tokens: int) -> None:
        """The host's count of verified tokens, after `extend_at` took in `num_tokens`."""

    def clear_uncertain(self) -> None:
        """Zeros where its memory holds no verified tokens: what is masked must still be finite."""


@runtime_checkable
class HasOwnCache(Protocol):
    """A drafter that can be had once more over the same weights."""

    def with_own_cache(self) -> Any:
        """The same drafter with memory that another request's drafting does not disturb."""


def deepest_tree(drafter: Drafter) -> int | None:
    """Levels of the deepest tree that the drafter can grow; None: no limit."""
    return drafter.max_depth if isinstance(drafter, DepthLimited) else None
