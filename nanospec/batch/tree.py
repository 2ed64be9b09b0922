"""The tree of a batch: every verified node costs as many rows of work as there are requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanospec.decoder_options import TreeArgument, as_tree_shape
from nanospec.static_tree import StaticTree
from nanospec.tree_shape import TreeShape

if TYPE_CHECKING:
    from nanospec.decode import SpeculativeDecoder

DEFAULT_MAX_BATCH = 8


def batch_tree(decoder: SpeculativeDecoder, max_batch: int, tree: TreeArgument) -> TreeShape | StaticTree:
    """The tree that a batch of `decoder` grows: what is named, or a default."""
    if isinstance(max_batch, bool) or not isinstance(max_batch, int):
        raise TypeError(f"max_batch must be an int, got {max_batch!r}")
    if max_batch < 1:
        raise ValueError(f"max_batch must be at least 1, got {max_batch}")
    if tree is None:
        return decoder.static_tree or decoder.tree
    return tree if isinstance(tree, StaticTree) else as_tree_shape(tree)
