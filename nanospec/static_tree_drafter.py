"""Grows trees of a fixed form with any drafter: which ranks are drafted does not depend on what they score."""

from __future__ import annotations

import torch
from torch import Tensor

from nanospec.drafters.drafter import Drafter
from nanospec.kv_cache import CachePlace
from nanospec.records import DraftTree, DraftVocab
from nanospec.static_tree import RankPath, StaticTree
from nanospec.tree_drafter import advance_of, children_of
from nanospec.tree_layout import ancestor_mask, node_depth


class StaticTreeDrafter:
    """As `TreeDrafter`, for one `StaticTree`; all positions are laid out once, on `device`.

    Every pass of the drafter runs as many nodes as the widest level has parents; narrower levels repeat one.
    """

    def __init__(
        self, drafter: Drafter, tree: StaticTree, device: torch.device, temperature: float | Tensor = 1.0
    ) -> None:
        self.drafter, self.tree, self.shape, self.temperature = drafter, tree, tree.shape, temperature
        levels, ranks, width = tree.levels, self.shape.branching, tree.frontier_width
        frontiers = [frontier + frontier[:1] * (width - len(frontier)) for frontier in tree.frontiers]
        # Where a path stands in the tree, and per level where its first occurrence stands among the parents.
        position: dict[RankPath, int] = {path: index for index, path in enumerate([(), *tree.paths])}
        parents: list[list[RankPath]] = [[()], *frontiers]
        slots = [{path: row.index(path) for path in row} for row in parents]

        def constant(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        self.parent_pos = constant([0, *(position[path[:-1]] for path in tree.paths)])[None]
        self.ancestors = ancestor_mask(self.parent_pos, self.shape.depth)
        self.depth = node_depth(self.ancestors)
        # Of every level: where its nodes stand among the children of the frontier before, [nodes of the level].
        self._picks = [
            constant([slots[index][path[:-1]] * ranks + path[-1] for path in level])
            for index, level in enumerate(levels)
        ]
        # Of every frontier: where its nodes stand in their level, and where their parents stand in the one before.
        self._places = [
            constant([level.index(path) for path in row]) for level, row in zip(levels[:-1], frontiers, strict=True)
        ]
        self._parents = [constant([slots[index][path[:-1]] for path in row]) for index, row in enumerate(frontiers)]
        self._visible = _visibility(self._parents, width, device)

    def draft(
        self, root_id: Tensor, root_state: Tensor, vocab: DraftVocab, place: CachePlace | None = None
    ) -> DraftTree:
        """As `TreeDrafter.draft`."""
        advance, batch = advance_of(self.drafter, vocab, place), root_id.shape[0]
        states, frontier_ids, frontier_score = root_state, root_id, torch.zeros_like(root_id, dtype=torch.float32)
        all_ids, all_scores = [root_id], [frontier_score]
        for level, picks in enumerate(self._picks):
            if level:
                inputs = states.index_select(1, self._parents[level - 1])
                visible = self._visible[level - 1].expand(batch, -1, -1)
                states = advance(frontier_ids, inputs, level, visible)
            input_ids = frontier_ids if level else root_id
            ids, log_prob = children_of(
                self.drafter, states, input_ids, vocab, self.shape.branching, self.temperature, level
            )
            score = (frontier_score[:, :, None] + log_prob).flatten(1).index_select(1, picks)
            level_ids = ids.flatten(1).index_select(1, picks)
            all_ids.append(level_ids.masked_fill(score.isneginf(), -1))
            all_scores.append(score)
            if level < len(self._places):
                frontier_ids = level_ids.index_select(1, self._places[level])
                frontier_score = score.index_select(1, self._places[level])
        shape = (batch, -1)
        return DraftTree(
            token_ids=torch.cat(all_ids, 1),
            parent_pos=self.parent_pos.expand(*shape),
            depth=self.depth.expand(*shape),
            score=torch.cat(all_scores, 1),
            ancestor_mask=self.ancestors.expand(*shape, -1),
        )


def _visibility(parents: list[Tensor], width: int, device: torch.device) -> list[Tensor]:
    """Per frontier bool [1, width, levels so far * width]: each slot sees itself and the slots of its ancestors."""
    itself = torch.eye(width, dtype=torch.bool, device=device)
    visible = [itself]
    for parent in parents[1:]:
        visible.append(torch.cat((visible[-1].index_select(0, parent), itself), 1))
    return [mask[None] for mask in visible[: len(parents)]]
