"""A model and prompt lookup drafting together: the lookup's best chain joins the model's tree."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nanospec.drafters.drafter import FixedShapeDrafter, HasHead, TakesFirstToken
from nanospec.drafters.joined_tree import joined_tree
from nanospec.drafters.prompt_lookup import PromptLookupDrafter
from nanospec.gathered_head import GatheredHead
from nanospec.kv_cache import CachePlace
from nanospec.records import DraftTree, DraftVocab
from nanospec.tree_drafter import TreeDrafter
from nanospec.tree_shape import TreeShape


class JoinedDrafter:
    """`model` with everything that it is as a drafter, and `lookup`, whose best chain takes the worst leaves' place.

    Raises TypeError unless `model` has passes of fixed shape and a head.
    """

    def __init__(self, model: FixedShapeDrafter, lookup: PromptLookupDrafter) -> None:
        if not isinstance(model, FixedShapeDrafter) or not isinstance(model, HasHead):
            raise TypeError(f"model must have passes of fixed shape and a head, got {type(model).__name__}")
        self.model, self.lookup = model, lookup
        self._scores: HasHead = model
        self.name = f"{model.name}+{lookup.name}"

    @property
    def dtype(self) -> torch.dtype | None:
        return self.model.dtype

    @property
    def head(self) -> GatheredHead:
        return self._scores.head

    def tree_drafter(self, shape: TreeShape) -> JoinedTreeDrafter:
        return JoinedTreeDrafter(self, shape)

    def reset(self, capacity: int) -> None:
        self.model.reset(capacity)
        self.lookup.reset(capacity)

    def begin(self, first_id: Tensor) -> None:
        if isinstance(self.model, TakesFirstToken):
            self.model.begin(first_id)
        self.lookup.begin(first_id)

    def extend(self, token_ids: Tensor, features: Tensor) -> Tensor:
        self.lookup.extend(token_ids, features)
        return self.model.extend(token_ids, features)

    def advance(self, token_ids: Tensor, states: Tensor, depth: int, visible: Tensor) -> Tensor:
        return self.model.advance(token_ids, states, depth, visible)

    def logits(self, states: Tensor, vocab: DraftVocab) -> Tensor:
        return self.model.logits(states, vocab)

    def memory(self) -> tuple[Tensor, ...]:
        """All tensors of both; their passes ask each for its own."""
        return (*self.model.memory(), *self.lookup.memory())

    def advance_at(
        self, token_ids: Tensor, states: Tensor, depth: int, visible: Tensor, place: CachePlace, memory: Any
    ) -> Tensor:
        return self.model.advance_at(token_ids, states, depth, visible, place, self.model.memory())

    def extend_at(
        self, token_ids: Tensor, features: Tensor, num_tokens: Tensor, place: CachePlace, memory: Any
    ) -> Tensor:
        self.lookup.extend_at(token_ids, features, num_tokens, place, self.lookup.memory())
        return self.model.extend_at(token_ids, features, num_tokens, place, self.model.memory())

    def commit(self, num_tokens: int) -> None:
        self.model.commit(num_tokens)
        self.lookup.commit(num_tokens)

    def clear_uncertain(self) -> None:
        self.model.clear_uncertain()
        self.lookup.clear_uncertain()


class JoinedTreeDrafter:
    """Grows the model's trees and joins one chain to each."""

    def __init__(self, drafter: JoinedDrafter, shape: TreeShape) -> None:
        self.drafter, self.shape = drafter, shape.validated()
        self._grown = TreeDrafter(drafter.model, shape)

    def draft(
        self, root_id: Tensor, root_state: Tensor, vocab: DraftVocab, place: CachePlace | None = None
    ) -> DraftTree:
        """As `TreeDrafter.draft`."""
        tree = self._grown.draft(root_id, root_state, vocab, place)
        chain = self.drafter.lookup.chains(1, self.shape.depth, place)
        return joined_tree(tree, chain, self.shape.depth)
