"""The shape of a draft tree and its defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class TreeShape(NamedTuple):
    """depth: drafted levels below the root; branching: children per node and width of a level; num_nodes: nodes that
    the target verifies, the root included."""

    depth: int
    branching: int
    num_nodes: int

    @property
    def num_candidates(self) -> int:
        """Nodes drafted before the best `num_nodes - 1` are kept: k at level 1, k * k at every further level."""
        return self.branching + (self.depth - 1) * self.branching**2

    def validated(self) -> TreeShape:
        """Self, or ValueError naming the number that is out of range."""
        for name, value, least in zip(self._fields, self, (1, 1, 2), strict=True):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"tree {name} must be an int, got {value!r}")
            if value < least:
                raise ValueError(f"tree {name} must be at least {least}, got {value}")
        if self.num_nodes > 1 + self.num_candidates:
            raise ValueError(
                f"tree num_nodes must be at most {1 + self.num_candidates} for depth {self.depth} and "
                f"branching {self.branching}, got {self.num_nodes}"
            )
        return self


def default_tree_shape(device: torch.device, num_rows: int, max_depth: int | None = None) -> TreeShape:
    """EAGLE-2's tree on an accelerator; fewer nodes on a CPU, where every verified node costs time.

    Narrower where the draft vocabulary has fewer rows (`num_rows`) than a node has children, shallower for a drafter
    that drafts at most `max_depth` levels.
    """
    depth, branching, num_nodes = (5, 8, 32) if device.type == "cpu" else (6, 10, 60)
    depth = depth if max_depth is None else min(depth, max_depth)
    shape = TreeShape(depth, min(branching, num_rows), num_nodes)
    return shape._replace(num_nodes=min(num_nodes, 1 + shape.num_candidates))


def parse_tree_shape(text: str) -> TreeShape:
    """TreeShape of "DEPTH,BRANCHING,NODES"; ValueError for anything else."""
    try:
        depth, branching, num_nodes = (int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"tree must be 'auto' or 'DEPTH,BRANCHING,NODES', got {text!r}") from None
    return TreeShape(depth, branching, num_nodes).validated()
