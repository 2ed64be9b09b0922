"""A draft tree whose form is fixed beforehand: which ranks are drafted where (Medusa, section 2.1.2; EAGLE-1, 3.1)."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nanospec.tree_shape import TreeShape

# Of the default tree, assumed: how often the likeliest token of the first head is right, and what of it is left per
# further head; rank r is right 1 / (r + 1)^2 times as often as rank 0.
FIRST_RATE, RATE_PER_HEAD = 0.6, 0.9
DEFAULT_NUM_NODES, DEFAULT_RANKS = 32, 10

RankPath = tuple[int, ...]


@dataclass(frozen=True)
class StaticTree:
    """Nodes below the root, each by the ranks on the way to it: (2, 0) is the likeliest child of the third likeliest
    token after the root.

    Raises ValueError for a path that is empty, repeated or without its parent, TypeError for ranks that are no ints.
    """

    paths: tuple[RankPath, ...]

    def __init__(self, paths: Iterable[Sequence[int]]) -> None:
        given = [tuple(path) for path in paths]
        if not given or () in given:
            raise ValueError(f"paths must name at least one node and not the root, got {given}")
        for path in given:
            if any(not isinstance(rank, int) or isinstance(rank, bool) for rank in path):
                raise TypeError(f"paths must hold ints, got {path}")
            if min(path) < 0:
                raise ValueError(f"paths must hold ranks from 0 on, got {path}")
            if len(path) > 1 and path[:-1] not in given:
                raise ValueError(f"paths must hold the parent of every node, got {path} without {path[:-1]}")
        if len(set(given)) != len(given):
            raise ValueError(f"paths must be distinct, got {len(given) - len(set(given))} repetitions")
        object.__setattr__(self, "paths", tuple(sorted(given, key=lambda path: (len(path), path))))

    @classmethod
    def from_rates(cls, rates: Sequence[Sequence[float]], num_nodes: int) -> StaticTree:
        """The tree of `num_nodes` nodes, the root included, with the most accepted tokens per step.

        `rates[d][r]`: how often rank r of the d-th level below the root is right, if its parent is. A path is right as
        often as the product of its rates (Medusa, section 2.3.3), and no child more often than its parent, so taking
        the best next node over and over gives the best tree. Of equal ones the shallower, then the smaller rank.

        Raises ValueError for rates that are not in (0, 1] or too few for num_nodes, or if num_nodes is below 2.
        """
        if num_nodes < 2:
            raise ValueError(f"num_nodes must be at least 2, got {num_nodes}")
        if not rates or any(not level or not all(0 < rate <= 1 for rate in level) for level in rates):
            raise ValueError(f"rates must be numbers above 0 and at most 1 for every level, got {rates}")
        chosen: list[RankPath] = []
        waiting: list[tuple[float, int, RankPath]] = [(-rate, 1, (rank,)) for rank, rate in enumerate(rates[0])]
        heapq.heapify(waiting)
        while len(chosen) < num_nodes - 1:
            if not waiting:
                raise ValueError(f"num_nodes must be at most {len(chosen) + 1} with these rates, got {num_nodes}")
            negative_rate, depth, path = heapq.heappop(waiting)
            chosen.append(path)
            for rank, rate in enumerate(rates[depth] if depth < len(rates) else ()):
                heapq.heappush(waiting, (negative_rate * rate, depth + 1, (*path, rank)))
        return cls(chosen)

    @property
    def shape(self) -> TreeShape:
        """depth; branching: the most children that are looked at, or nodes of a level with children; num_nodes."""
        most_ranks = 1 + max(max(path) for path in self.paths)
        return TreeShape(len(self.paths[-1]), max(most_ranks, self.frontier_width), len(self.paths) + 1)

    @property
    def levels(self) -> list[list[RankPath]]:
        """Paths by depth, from 1 on."""
        depth = len(self.paths[-1])
        return [[path for path in self.paths if len(path) == level] for level in range(1, depth + 1)]

    @property
    def frontiers(self) -> list[list[RankPath]]:
        """Of every level but the last, the nodes that have children."""
        parents = {path[:-1] for path in self.paths}
        return [[path for path in level if path in parents] for level in self.levels[:-1]]

    @property
    def frontier_width(self) -> int:
        """Nodes that the widest pass of a drafter runs; 0 if the tree has one level."""
        return max((len(frontier) for frontier in self.frontiers), default=0)


def default_static_tree(num_heads: int, num_nodes: int = DEFAULT_NUM_NODES) -> StaticTree:
    """The best tree for heads of assumed accuracy, see `FIRST_RATE`. Raises ValueError if num_heads is below 1."""
    if num_heads < 1:
        raise ValueError(f"num_heads must be at least 1, got {num_heads}")
    ranks = [1 / (rank + 1) ** 2 for rank in range(max(DEFAULT_RANKS, math.ceil((num_nodes - 1) / num_heads)))]
    rates = [[FIRST_RATE * RATE_PER_HEAD**head * share for share in ranks] for head in range(num_heads)]
    return StaticTree.from_rates(rates, num_nodes)
