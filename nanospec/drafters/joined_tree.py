"""A chain of tokens into a draft tree: it shares what the tree already has, and takes the place of the worst leaves."""

from __future__ import annotations

import torch
from torch import Tensor

from nanospec.records import DraftTree
from nanospec.tree_layout import tree_layout


def joined_tree(tree: DraftTree, chain: Tensor, max_depth: int) -> DraftTree:
    """The tree with the path `chain` below its root; as many nodes as before.

    chain      int64 [B, m], m <= max_depth; from the first -1 on it holds nothing
    max_depth  no node of the tree is deeper

    The chain's longest prefix that the tree holds stays where it is, the rest is appended. For every node that is
    appended one leaves: unused ones first, then those of the lowest score, children before parents, never one of the
    chain's own. A chain that does not fit is cut. A node of the chain scores as its parent: it has no probability.
    Fixed shapes, no host sync.

    Example: nodes 5 (root), 7 and 8 (children of 5), 9 (child of 7) with falling scores, and the chain 8, 4, give
    nodes 5, 7, 8 and 4, a child of 8.

    Raises ValueError for a chain that is deeper than max_depth.
    """
    num_nodes, length = tree.token_ids.shape[1], chain.shape[1]
    if length > max_depth:
        raise ValueError(f"chain must have at most max_depth {max_depth} tokens, got {length}")
    on_path = _nodes_on_path(tree, chain)
    num_shared = on_path.sum(1, keepdim=True) - 1
    last_shared = tree.depth.where(on_path, -1).argmax(1, keepdim=True)
    num_tokens = (chain >= 0).cumprod(1).sum(1, keepdim=True)
    num_new = torch.minimum(num_tokens, torch.full_like(num_tokens, num_nodes - 1)) - num_shared

    # Stable, and parents stand before children: of equal scores the child leaves first, so no kept node is orphaned.
    order = tree.score.masked_fill(on_path, float("inf")).sort(dim=1, descending=True, stable=True).indices
    is_kept = torch.zeros_like(order).scatter(1, order, _positions(order)) < num_nodes - num_new
    kept_pos = is_kept.cumsum(1) - 1
    behind_shared = _positions(chain) - num_shared
    is_new = (behind_shared >= 0) & (behind_shared < num_new)
    new_pos = num_nodes - num_new + behind_shared
    first_parent = kept_pos.gather(1, last_shared)

    # Every node to its place; what leaves goes to one extra column that is cut off.
    place = torch.cat((kept_pos.where(is_kept, num_nodes), new_pos.where(is_new, num_nodes)), 1)
    old_parent = kept_pos.gather(1, tree.parent_pos)
    parents = torch.cat((old_parent, torch.where(behind_shared == 0, first_parent, new_pos - 1)), 1)
    scores = torch.cat((tree.score, tree.score.gather(1, last_shared).expand(-1, length)), 1)
    token_ids = torch.cat((tree.token_ids, chain), 1)
    token_ids, parent_pos, score = (_scatter(values, place, num_nodes) for values in (token_ids, parents, scores))
    ancestors, depth = tree_layout(parent_pos, max_depth)
    return DraftTree(token_ids, parent_pos, depth, score, ancestors)


def _nodes_on_path(tree: DraftTree, chain: Tensor) -> Tensor:
    """bool [B, T]: the root, and nodes that carry the chain's token of their depth as all their ancestors do."""
    wanted = chain.gather(1, (tree.depth - 1).clamp(0, chain.shape[1] - 1))
    matches = (tree.token_ids == wanted) & (tree.token_ids >= 0) & (tree.depth <= chain.shape[1])
    matches[:, 0] = True
    return (matches[:, None, :] | ~tree.ancestor_mask).all(-1)


def _scatter(values: Tensor, place: Tensor, num_nodes: int) -> Tensor:
    """values [B, n] to the columns `place`; column num_nodes is thrown away."""
    return values.new_zeros(values.shape[0], num_nodes + 1).scatter(1, place, values)[:, :num_nodes]


def _positions(index: Tensor) -> Tensor:
    return torch.arange(index.shape[1], device=index.device).expand_as(index)
