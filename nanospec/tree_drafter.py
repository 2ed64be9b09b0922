"""EAGLE-2's dynamic draft tree (Li et al. 2024b, section 4), grown with any drafter over any draft vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from nanospec.drafters.drafter import Drafter, FixedShapeDrafter
from nanospec.drafters.eagle import EagleDrafter
from nanospec.kv_cache import CachePlace
from nanospec.ops.blocked_topk import blocked_topk
from nanospec.records import DraftTree, DraftVocab
from nanospec.tree_layout import tree_layout
from nanospec.tree_shape import TreeShape

BLOCKED_WIDTH = 16384  # columns from which the search by blocks is faster than torch.topk


class _Level(NamedTuple):
    """Candidates of one level, [B, n] each; `parent` counts in the list of all candidates, -1 for the root."""

    token_ids: Tensor
    score: Tensor
    parent: Tensor


# What `grow_tree` asks of a drafter; see there.
Advance = Callable[[Tensor, Tensor, int, Tensor], Tensor]
Children = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


class TreeGrower(Protocol):
    """Whatever grows the trees of a decoding loop: `TreeDrafter`, or one that does it in another way."""

    @property
    def drafter(self) -> Drafter: ...

    @property
    def shape(self) -> TreeShape: ...

    def draft(
        self, root_id: Tensor, root_state: Tensor, vocab: DraftVocab, place: CachePlace | None = None
    ) -> DraftTree:
        """As `TreeDrafter.draft`."""
        ...


class TreeDrafter:
    """Grows trees of one shape with any drafter.

    temperature: the drafter's logits are divided by it; float32 [B, 1, 1] where sequences differ. A tree should prefer
    what will be accepted; a greedy target takes the drafter's first choice more often than its probability says, and
    below 1 the tree goes deeper for it.
    """

    def __init__(self, drafter: Drafter, shape: TreeShape, temperature: float | Tensor = 1.0) -> None:
        self.drafter, self.shape, self.temperature = drafter, shape.validated(), temperature

    def draft(
        self, root_id: Tensor, root_state: Tensor, vocab: DraftVocab, place: CachePlace | None = None
    ) -> DraftTree:
        """root_id int64 [B, 1]: the last certain token; root_state [B, 1, D]: the drafter's state after it.

        place: where in the drafter's cache, if only the device knows, for a `FixedShapeDrafter`; None: where it counts.
        """
        drafter, width = self.drafter, self.shape.branching
        return grow_tree(
            self.shape,
            root_id,
            root_state,
            advance_of(drafter, vocab, place),
            lambda states, token_ids, level: children_of(
                drafter, states, token_ids, vocab, width, self.temperature, level
            ),
        )


def advance_of(drafter: Drafter, vocab: DraftVocab, place: CachePlace | None) -> Advance:
    """`Drafter.advance`, or `advance_at` that place; before it the vocabulary may look ahead."""
    advance = drafter.advance
    if place is not None:
        assert isinstance(drafter, FixedShapeDrafter), "the caller checks"
        advance = partial(drafter.advance_at, place=place, memory=drafter.memory())
    look_ahead = vocab.look_ahead
    if look_ahead is None:
        return advance

    def advance_and_look_ahead(token_ids: Tensor, states: Tensor, depth: int, visible: Tensor) -> Tensor:
        look_ahead(token_ids, states, depth)
        return advance(token_ids, states, depth, visible)

    return advance_and_look_ahead


def children_of(
    drafter: Drafter,
    states: Tensor,
    token_ids: Tensor,
    vocab: DraftVocab,
    branching: int,
    temperature: float | Tensor = 1.0,
    level: int = 0,
) -> tuple[Tensor, Tensor]:
    """states [B, n, D] after tokens int64 [B, n] at a level of the tree (0: the root) -> the `branching` best ids after
    each and their log-probabilities, [B, n, branching], with the temperature and the vocabulary's prior."""
    if vocab.at_level is not None:
        vocab = vocab.at_level(states, level)
    raise_scores = vocab.raise_scores
    if (
        raise_scores is None
        and not isinstance(temperature, Tensor)
        and isinstance(drafter, EagleDrafter)
        and drafter.head.has_kernel(vocab, branching)
    ):
        return drafter.best(states, vocab, branching, temperature)
    logits = sharpen(drafter.logits(states, vocab), temperature)
    if raise_scores is not None:
        logits = raise_scores(logits, token_ids)
    draft_pos, score = best_children(logits, branching)
    return ids_at(vocab.draft_ids, draft_pos), score


def ids_at(draft_ids: Tensor, draft_pos: Tensor) -> Tensor:
    """draft_ids int64 [B or 1, K] at positions int64 [B, n, k] -> int64 [B, n, k]."""
    if draft_ids.shape[0] == 1:
        return draft_ids.take(draft_pos)
    return draft_ids.gather(1, draft_pos.flatten(1)).view_as(draft_pos)


def cache_rows_needed(shape: TreeShape) -> int:
    """Rows that one tree may need in a cache, the target's or the drafter's."""
    return max(shape.num_nodes, shape.depth * shape.branching)


def grow_tree(shape: TreeShape, root_id: Tensor, root_state: Tensor, advance: Advance, children: Children) -> DraftTree:
    """The tree below root_id int64 [B, 1], the last certain token, with the drafter's state [B, 1, D] after it.

    advance   as `Drafter.advance`
    children  states [B, n, D] after tokens int64 [B, n], and the level of these in the tree (0: the root) -> the
              `branching` best tokens after each and their log-probabilities, [B, n, branching]

    Level 1 holds the `branching` best tokens after the root. Every further level runs the frontier in one pass, takes
    `branching` children of each, scored with the sum of log-probabilities from the root, and makes the best of them
    the next frontier. All stay candidates; the best `num_nodes - 1` become the tree.
    """
    width = shape.branching
    token_ids, score = children(root_state, root_id, 0)
    levels = [_Level(token_ids[:, 0], score[:, 0], torch.full_like(token_ids[:, 0], -1))]
    frontier = torch.arange(width, device=root_id.device).expand(root_id.shape[0], -1)  # in the list of candidates
    states, first = root_state.expand(-1, width, -1), 0
    visible = torch.eye(width, dtype=torch.bool, device=root_id.device).expand(root_id.shape[0], -1, -1)
    for depth in range(1, shape.depth):
        local = frontier - first
        frontier_ids = levels[-1].token_ids.gather(1, local)
        frontier_score = levels[-1].score.gather(1, local)
        states = advance(frontier_ids, states, depth, visible)
        token_ids, log_prob = children(states, frontier_ids, depth)
        score = (frontier_score[:, :, None] + log_prob).flatten(1)
        first += levels[-1].score.shape[1]
        levels.append(_Level(token_ids.flatten(1), score, frontier.repeat_interleave(width, 1)))
        if depth + 1 < shape.depth:
            best = score.topk(width, -1).indices
            parent = best // width
            states = states.gather(1, parent[:, :, None].expand(-1, -1, states.shape[-1]))
            visible = _extend_visibility(visible, parent)
            frontier = best + first
    return _keep_best(shape, root_id, levels)


def sharpen(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """logits [B, n, K] / temperature, in float32 at least; as they are at temperature 1. Tensor: float32 [B, 1, 1]."""
    if not isinstance(temperature, Tensor) and temperature == 1.0:
        return logits
    # One copy does both: it widens the numbers, and lays out node by node what a product left column by column.
    if logits.dtype in (torch.float32, torch.float64):
        return logits / temperature
    return logits.to(torch.float32, memory_format=torch.contiguous_format).div_(temperature)


def best_children(logits: Tensor, branching: int, by_blocks: bool = True) -> tuple[Tensor, Tensor]:
    """logits [B, n, K] -> positions and log-probabilities of the best, [B, n, branching]; -inf where none is left.

    by_blocks: search wide rows by blocks. What is to be compiled over fewer columns calls torch.topk instead.
    """
    log_prob = logits.log_softmax(-1, dtype=torch.float32)
    if by_blocks and log_prob.shape[-1] >= BLOCKED_WIDTH:
        score, pos = (x.view(*logits.shape[:2], -1) for x in blocked_topk(log_prob.flatten(0, 1), branching))
    else:
        score, pos = log_prob.topk(branching)
    return pos, score.nan_to_num(nan=float("-inf"), neginf=float("-inf"))


def _keep_best(shape: TreeShape, root_id: Tensor, levels: list[_Level]) -> DraftTree:
    token_ids, score, parent = (torch.cat(column, 1) for column in zip(*levels, strict=True))
    token_ids = token_ids.masked_fill(score.isneginf(), -1)
    # Stable: on equal scores the shallower candidate comes first, so that a parent is never dropped for its child.
    order = score.sort(dim=1, descending=True, stable=True).indices
    kept = order[:, : shape.num_nodes - 1].sort(1).values
    tree_pos = torch.zeros_like(parent).scatter_(1, kept, _positions_like(kept) + 1)
    parent_candidate = parent.gather(1, kept)
    parent_pos = tree_pos.gather(1, parent_candidate.clamp(min=0)).masked_fill_(parent_candidate < 0, 0)
    parent_pos = torch.nn.functional.pad(parent_pos, (1, 0))
    ancestors, depth = tree_layout(parent_pos, shape.depth)
    return DraftTree(
        token_ids=torch.cat((root_id, token_ids.gather(1, kept)), 1),
        parent_pos=parent_pos,
        depth=depth,
        score=torch.nn.functional.pad(score.gather(1, kept), (1, 0)),
        ancestor_mask=ancestors,
    )


def _extend_visibility(visible: Tensor, parent: Tensor) -> Tensor:
    """What the next frontier sees of the levels run so far: what its parents see, and itself in a level of its own."""
    inherited = visible.gather(1, parent[:, :, None].expand(-1, -1, visible.shape[2]))
    itself = torch.eye(parent.shape[1], dtype=torch.bool, device=parent.device).expand(parent.shape[0], -1, -1)
    return torch.cat((inherited, itself), -1)


def _positions_like(index: Tensor) -> Tensor:
    return torch.arange(index.shape[1], device=index.device).expand_as(index)
