"""A vocabulary of the context and, at every level of a tree, what a router adds: ids that no text has shown yet."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from nanospec.head_shard import whole_head
from nanospec.records import DraftVocab, Observation
from nanospec.vocab.in_context import InContextVocab
from nanospec.vocab.routed import RoutedVocab

LOOKED_AT = 4  # rows that the router names for each that is added: the policy holds many of them already


class RouterAddedVocab(nn.Module):
    """The ids of `policy` and behind them, at every level, the first `num_added` that `routed` names and it lacks.

    routed     names the rows to choose from, best cluster first, the same number at all levels
    num_added  most rows that are added; as many as `policy` has free slots for. None of them stays for the next level

    Where `policy` keeps rows packed, those of added ids lie in its unused slots until the next level is drafted.

    Raises TypeError for a policy that does not follow the context by itself, ValueError for one of several sequences,
    over another head than `routed`, and for a `num_added` outside [1, rows that `routed` names].
    """

    observes: bool = True
    slots: Tensor

    def __init__(self, policy: InContextVocab, routed: RoutedVocab, num_added: int) -> None:
        super().__init__()
        _check(policy, routed, num_added)
        self.policy, self.routed, self.num_added = policy, routed, num_added
        self.head_weight, self.capacity = policy.head_weight, policy.tracker.capacity
        self.name = f"{policy.name}+routed-{num_added}"
        # Where the ids that the router named last lie, [1, R]; K: nowhere.
        slots = torch.full((1, min(routed.num_rows)), self.capacity, device=policy.head_weight.device)
        self.register_buffer("slots", slots, persistent=False)

    def reset(self, rows: Tensor | None = None) -> None:
        """As the policy's."""
        self.policy.reset(rows)

    def learn(self, observation: Observation) -> None:
        """As the policy's: added ids are learnt where the text or the target shows them."""
        self.policy.learn(observation)

    def select(self, width: int | None = None) -> DraftVocab:
        """What is drafted from is `at_level` of this; `count` is the most that any level has."""
        chosen = self.policy.select(width)
        count = (chosen.count + self.num_added).clamp(max=self.capacity)
        at_level = partial(self.at_level, width=chosen.draft_ids.shape[1])
        return chosen._replace(count=count, at_level=at_level, look_ahead=self.routed.select().look_ahead)

    def at_level(self, states: Tensor, level: int, width: int) -> DraftVocab:
        """The ids to score after states [1, n, D], the nodes of tree level `level`, in `width` columns."""
        named = self.routed.at_level(states, level).draft_ids  # [1, R]
        tracker, rows = self.policy.tracker, self.policy.rows
        is_new = self.policy.columns(named) < 0
        place = is_new.cumsum(1)
        is_added = is_new & (place <= self.num_added)
        end = tracker.count[:, None] + place  # behind the added ids up to this one
        self.slots = torch.where(is_added & (end <= width), end - 1, self.capacity)
        ids = tracker.slot_token.scatter(1, self.slots, named)[:, :width]  # slot K takes what is not added
        if rows is not None:
            rows[0].index_copy_(0, self.slots[0], whole_head(self.head_weight).index_select(0, named[0]))
            rows = rows[:, :width]
        count = tracker.count + (self.slots < self.capacity).sum(1, dtype=torch.int32)
        return DraftVocab(ids, count, rows)

    def columns(self, ids: Tensor) -> Tensor:
        """ids int64 [1, ..] inside the vocabulary -> the column of each at the level drafted last, or -1."""
        held, named = self.policy.columns(ids), self.routed.columns(ids)
        slot = self.slots[0][named.clamp(min=0)]
        added = slot.masked_fill((named < 0) | (slot == self.capacity), -1)
        return torch.where(held < 0, added, held)


def _check(policy: InContextVocab, routed: RoutedVocab, num_added: int) -> None:
    if not isinstance(policy, InContextVocab):
        raise TypeError(f"policy must be an InContextVocab for a router to add to, got {type(policy).__name__}")
    if policy.tracker.batch_size != 1:
        raise ValueError(f"policy must be of one sequence, got {policy.tracker.batch_size}")
    routed.router.check_head(whole_head(policy.head_weight))
    if len(set(routed.num_rows)) > 1:
        raise ValueError(f"routed must name as many rows at every level, got {routed.num_rows}")
    if not 1 <= num_added <= routed.num_rows[0]:
        raise ValueError(f"num_added must be in [1, {routed.num_rows[0]}], the rows that are named, got {num_added}")
