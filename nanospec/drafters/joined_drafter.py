"""A model and prompt lookup drafting together: the lookup's best chain joins the model's tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nanospec.drafters.drafter import Drafter, FixedShapeDrafter, HasOwnCache, Resumable, TakesFirstToken
from nanospec.drafters.joined_tree import joined_tree
from nanospec.drafters.prompt_lookup import PromptLookupDrafter
from nanospec.kv_cache import CachePlace
from nanospec.records import DraftTree, DraftVocab

if TYPE_CHECKING:
    from nanospec.tree_drafter import TreeGrower


class JoinedDrafter:
    """`model` as it drafts, and `lookup`, whose best chain takes the place of the worst leaves.

    Raises TypeError for a model without passes of fixed shape.
    """

    def __init__(self, model: FixedShapeDrafter, lookup: PromptLookupDrafter) -> None:
        if not isinstance(model, FixedShapeDrafter):
            raise TypeError(f"model must have passes of fixed shape, got {type(model).__name__}")
        self.model, self.lookup = model, lookup
        self.name = f"{model.name}+{lookup.name}"

    def with_own_cache(self) -> JoinedDrafter:
        """Both over the same weights, with memory that another request's drafting does not disturb."""
        model = self.model.with_own_cache() if isinstance(self.model, HasOwnCache) else self.model
        return JoinedDrafter(model, self.lookup.with_own_cache())

    @property
    def dtype(self) -> torch.dtype | None:
        return self.model.dtype

    @property
    def state_size(self) -> int:
        return self.model.state_size

    def reset(self, capacity: int) -> None:
        self.model.reset(capacity)
        self.lookup.reset(capacity)

    def resume(self, num_tokens: int, capacity: int) -> int:
        if not isinstance(self.model, Resumable) or not self.model.resume(num_tokens, capacity):
            return 0
        return self.lookup.resume(num_tokens, capacity)

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


def join_prompt_lookup(model: Drafter, device: torch.device) -> JoinedDrafter:
    """The model with a prompt lookup of its own. Raises ValueError for a draft that looks up already, TypeError as
    `JoinedDrafter`."""
    if isinstance(model, PromptLookupDrafter | JoinedDrafter):
        raise ValueError(f"lookup=True needs a draft that is a model alone, got {model.name}")
    return JoinedDrafter(model, PromptLookupDrafter(device))  # type: ignore[arg-type]  # checked there


class JoinedTreeDrafter:
    """Lets `grower` grow the model's trees and joins one chain to each."""

    def __init__(self, drafter: JoinedDrafter, grower: TreeGrower) -> None:
        self.drafter, self.shape, self.grower = drafter, grower.shape, grower

    def draft(
        self, root_id: Tensor, root_state: Tensor, vocab: DraftVocab, place: CachePlace | None = None
    ) -> DraftTree:
        """As `TreeDrafter.draft`."""
        tree = self.grower.draft(root_id, root_state, vocab, place)
        chain = self.drafter.lookup.chains(1, self.shape.depth, place)
        return joined_tree(tree, chain, self.shape.depth)
