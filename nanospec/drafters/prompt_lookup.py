"""Prompt lookup (Saxena 2023): what followed the same few tokens earlier in the text is proposed again; no weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nanospec.draft_names import PROMPT_LOOKUP as PROMPT_LOOKUP
from nanospec.kv_cache import CachePlace
from nanospec.records import DraftTree, DraftVocab
from nanospec.tree_layout import tree_layout
from nanospec.tree_shape import TreeShape


class LookupMemory(NamedTuple):
    """int64 [capacity]: the text, from its first token on; what lies behind it is rubbish."""

    history: Tensor


class PromptLookupDrafter:
    """Keeps the text in a buffer on the device; its trees are made of what followed earlier occurrences of its end.

    longest, shortest: tokens of the text's end that an occurrence must repeat, at most and at least. Among the
    occurrences those of more tokens come first, and of equal ones the most recent.

    Raises ValueError unless 1 <= shortest <= longest.
    """

    name = PROMPT_LOOKUP
    dtype: torch.dtype | None = None
    state_size = 0

    def __init__(self, device: torch.device | str | None = None, longest: int = 3, shortest: int = 1) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(f"shortest must be in [1, longest {longest}], got {shortest}")
        self.longest, self.shortest = longest, shortest
        self.history = torch.zeros(0, dtype=torch.int64, device=device)
        self.length = 0

    def with_own_cache(self) -> PromptLookupDrafter:
        """One with a text of its own."""
        return PromptLookupDrafter(self.history.device, self.longest, self.shortest)

    def reset(self, capacity: int) -> None:
        if capacity > self.history.shape[0]:
            with torch.inference_mode(False):  # an ordinary tensor, writable in and outside inference mode
                self.history = self.history.new_zeros(capacity)
        self.length = 0

    def resume(self, num_tokens: int, capacity: int) -> int:
        if self.length <= num_tokens:  # the text holds the token after them, too
            return 0
        text = self.history[: num_tokens + 1]
        self.reset(capacity)
        self._append(text[None])
        return num_tokens

    def begin(self, first_id: Tensor) -> None:
        self._append(first_id)

    def extend(self, token_ids: Tensor, features: Tensor) -> Tensor:
        """As `Drafter.extend`; its state [1, 1, 0] says nothing, the text is its memory."""
        self._append(token_ids)
        return features.new_empty(1, 1, 0)

    def advance(self, token_ids: Tensor, states: Tensor, depth: int, visible: Tensor) -> Tensor:
        """Raises NotImplementedError: there are no levels to run, see `LookupTreeDrafter`."""
        raise NotImplementedError("prompt lookup runs no levels of a tree: LookupTreeDrafter grows its trees")

    def logits(self, states: Tensor, vocab: DraftVocab) -> Tensor:
        """Raises NotImplementedError: no token has a score, see `LookupTreeDrafter`."""
        raise NotImplementedError("prompt lookup scores no tokens: LookupTreeDrafter grows its trees")

    def memory(self) -> LookupMemory:
        return LookupMemory(self.history)

    def advance_at(
        self, token_ids: Tensor, states: Tensor, depth: int, visible: Tensor, place: CachePlace, memory: LookupMemory
    ) -> Tensor:
        return self.advance(token_ids, states, depth, visible)

    def extend_at(
        self, token_ids: Tensor, features: Tensor, num_tokens: Tensor, place: CachePlace, memory: LookupMemory
    ) -> Tensor:
        positions = place.length + 1 + torch.arange(token_ids.shape[1], device=token_ids.device)
        memory.history.index_copy_(0, positions, token_ids[0])
        return features.new_empty(1, 1, 0)

    def commit(self, num_tokens: int) -> None:
        self.length += num_tokens

    def clear_uncertain(self) -> None:
        """Nothing to do: what lies behind the text is never compared."""

    def chains(self, num_chains: int, num_tokens: int, place: CachePlace | None = None) -> Tensor:
        """int64 [num_chains, num_tokens]: what followed the best occurrences, as `lookup_chains`.

        place: where the target's certain tokens end, if only the device knows; the text is one longer, by the root.
        """
        if place is None:
            length = torch.full((1,), self.length, device=self.history.device)
        else:
            length = place.length + 1
        return lookup_chains(self.history, length, num_chains, num_tokens, self.longest, self.shortest)

    def _append(self, token_ids: Tensor) -> None:
        end = self.length + token_ids.shape[1]
        self.history[self.length : end] = token_ids[0]
        self.length = end


class LookupTreeDrafter:
    """Trees of `shape.branching` occurrences, each with the `shape.depth` tokens that followed it."""

    def __init__(self, drafter: PromptLookupDrafter, shape: TreeShape) -> None:
        self.drafter, self.shape = drafter, shape.validated()

    def draft(
        self, root_id: Tensor, root_state: Tensor, vocab: DraftVocab, place: CachePlace | None = None
    ) -> DraftTree:
        """As `TreeDrafter.draft`; neither `root_state` nor `vocab` is read."""
        chains = self.drafter.chains(self.shape.branching, self.shape.depth, place)
        return tree_of_chains(root_id, chains[None], self.shape.num_nodes)


def lookup_chains(
    history: Tensor, length: Tensor, num_chains: int, num_tokens: int, longest: int, shortest: int
) -> Tensor:
    """What followed earlier occurrences of the end of a text, int64 [num_chains, num_tokens]; -1 where there is none.

    history  int64 [capacity], the text in its first `length` (int64 [1]) entries, rubbish behind

    An occurrence repeats the last n tokens, n as large as possible from `longest` down to `shortest`; larger n first,
    then the most recent. A continuation that meets the end of the text goes round: the text is taken to be periodic.
    Fixed shapes, no host sync.

    Example: text 1 2 3 1 2 and longest 3, shortest 1: the 2 at position 1 repeats two tokens, and 3 1 2 3 .. follows.
    """
    positions = torch.arange(history.shape[0], device=history.device)
    last = length - 1
    repeated, still_equal = torch.zeros_like(positions), positions < last
    for back in range(longest):
        is_inside = positions >= back
        suffix_token = history.index_select(0, (last - back).clamp(min=0))
        still_equal = still_equal & is_inside & (history.roll(back) == suffix_token)
        repeated = repeated + still_equal
    is_match = repeated >= shortest
    order = (repeated * history.shape[0] + positions).masked_fill(~is_match, -1)
    best = order.topk(min(num_chains, order.shape[0])).indices
    follow = torch.arange(num_tokens, device=history.device) % (last - best).clamp(min=1)[:, None]
    chains = history[(best[:, None] + 1 + follow).clamp(max=history.shape[0] - 1)]
    chains = chains.masked_fill(~is_match[best][:, None], -1)
    return torch.nn.functional.pad(chains, (0, 0, 0, num_chains - chains.shape[0]), value=-1)


def tree_of_chains(root_id: Tensor, chains: Tensor, num_nodes: int) -> DraftTree:
    """A tree of `num_nodes` nodes with a path below the root for every chain, common prefixes shared.

    root_id int64 [B, 1]; chains int64 [B, m, n], each empty (all -1) or full. Chains enter one after the other, each
    from the root down, until the nodes are used up; what is left is unused. A node scores minus its position.

    Example: chains 7 8 and 7 9 below root 5 give nodes 5, 7, 8, 9 with parents 0, 0, 1, 1.
    """
    batch, num_chains, length = chains.shape
    device = chains.device
    # [B, i, j, t]: chains i and j agree down to depth t + 1; the first chain that agrees owns the node.
    agree = (chains[:, :, None] == chains[:, None]).cumprod(-1)
    owner = agree.argmax(2)  # [B, m, n]
    is_own = (owner == torch.arange(num_chains, device=device)[:, None]) & (chains >= 0)
    tree_pos = is_own.flatten(1).cumsum(1)  # [B, m * n]
    is_kept = is_own.flatten(1) & (tree_pos < num_nodes)

    above = torch.arange(num_chains * length, device=device) - 1  # the node above in the same chain ..
    owner_above = torch.nn.functional.pad(owner, (1, 0))[..., :-1].flatten(1)
    parent = (owner_above * length + above % length).clamp(min=0)  # .. or its twin in the chain that owns it
    parent_pos = tree_pos.gather(1, parent)
    parent_pos[:, ::length] = 0

    place = tree_pos.where(is_kept, num_nodes)
    token_ids = torch.full((batch, num_nodes + 1), -1, device=device).scatter(1, place, chains.flatten(1))
    parents = torch.zeros_like(token_ids).scatter(1, place, parent_pos)[:, :num_nodes]
    token_ids = torch.cat((root_id, token_ids[:, 1:num_nodes]), 1)
    ancestors, depth = tree_layout(parents, length)
    rank = -torch.arange(num_nodes, dtype=torch.float32, device=device)
    score = rank.expand(batch, -1).masked_fill(token_ids < 0, float("-inf"))
    return DraftTree(token_ids, parents, depth, score, ancestors)
