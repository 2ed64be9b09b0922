"""Which path of a draft tree the target accepts, and the token it says next; the output is the target's own, exactly.

Position t of the output has one number u_t. At a node the target's own token is argmax (greedy) or the token that u_t
picks from p; the walk goes to the child that carries it, and ends where there is none: that token is the bonus token.
So every step makes the choice that autoregressive decoding with the same seed makes, whatever was drafted.

For children that are fixed before the draw, the classic rule (SpecInfer, arXiv:2305.09781; EAGLE-2, arXiv:2406.16858)
tries siblings x_1, x_2, .. in order, accepts x_j with its renormalised probability and else removes it. It goes on
with the same probability: prod_{i<j} (1 - q_i) q_j = p(x_j) telescopes for q_j = p(x_j) / (1 - sum_{i<j} p(x_i)), so
both rules go to x_j with p(x_j), go on with the sum of p over the children, and else say y with p(y).
`acceptance_reference` states the classic rule in plain Python.

The greedy path is one kernel on CUDA. The sampled walk stays PyTorch: what it costs is the softmax over V.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanospec.records import DraftTree, Verdict
from nanospec.sampling import SamplingParams, is_free_to_read, pick_next
from nanospec.tree_layout import has_tree_kernel


def accept_greedy(tree: DraftTree, best_id: Tensor, max_depth: int) -> Verdict:
    """The longest path along which every node carries the best id of its parent.

    best_id int64 [B, T]: the target's argmax at every node, any value at unused nodes; no used node is deeper than
    max_depth. Fixed shapes, no host sync. Example: a root with children 5 and 7, where the target says 7 at the root
    and 9 at node 7, accepts the root and node 7 and says 9 next.
    """
    if has_tree_kernel(best_id):
        from nanospec.ops.accept_path_triton import accept_path_triton

        return Verdict(*accept_path_triton(tree.token_ids, tree.parent_pos, best_id, max_depth))
    wanted = best_id.gather(1, tree.parent_pos)
    matches = (tree.token_ids == wanted) & (tree.token_ids >= 0)
    matches[:, 0] = True  # the root is certain
    accepted = matches & (matches[:, None, :] | ~tree.ancestor_mask).all(-1)
    end = tree.depth.where(accepted, -1).argmax(1)
    return Verdict(*path_to(tree, end, max_depth), best_id.gather(1, end[:, None])[:, 0])


def path_to(tree: DraftTree, end: Tensor, max_depth: int) -> tuple[Tensor, Tensor]:
    """(`accepted_pos`, `num_accepted`) of a `Verdict` whose path ends at node `end` int64 [B]."""
    batch, num_nodes = tree.token_ids.shape
    on_path = tree.ancestor_mask.gather(1, end[:, None, None].expand(-1, 1, num_nodes))[:, 0]
    # A node's place in the path is its depth; what is off the path goes to one extra column that is cut off.
    column = tree.depth.where(on_path, max_depth + 1)
    positions = torch.arange(num_nodes, device=end.device).expand(batch, -1)
    accepted_pos = positions.new_zeros(batch, max_depth + 2).scatter(1, column, positions)[:, : max_depth + 1]
    return accepted_pos, on_path.sum(1)


def accept_sampled(
    tree: DraftTree, logits: Tensor, params: SamplingParams, u: Tensor | None, seen: Tensor | None, max_depth: int
) -> Verdict:
    """The path along which every node carries the token that the target picks at its parent.

    logits [B, T, V]    the target's at every node
    u float64 [B, L]    L = max_depth + 1; column d picks the token after a node at depth d; None at temperature 0
    seen bool [B, V]    ids of the prompt and of all output up to and including the root; None without a penalty. Not
                        changed; a node sees its own path besides

    Temperature 0 is the greedy rule, here with a repetition penalty. L rounds of fixed-shape tensor code without a host
    sync; on a CPU it ends as soon as every walk has ended.
    """
    batch, num_nodes, _ = logits.shape
    rows = torch.arange(batch, device=logits.device)
    is_child = torch.arange(num_nodes, device=logits.device) > 0  # the root is its own parent, but not its child
    node = torch.zeros(batch, dtype=torch.int64, device=logits.device)
    is_walking = torch.ones(batch, dtype=torch.bool, device=logits.device)
    next_id = torch.zeros_like(node)
    path = [node]
    for depth in range(max_depth + 1):
        own_id = pick_next(logits[rows, node], params, None if u is None else u[:, depth], seen)
        next_id = torch.where(is_walking, own_id, next_id)
        if depth == max_depth:
            break
        carries = is_child & (tree.parent_pos == node[:, None]) & (tree.token_ids == own_id[:, None])
        is_walking = is_walking & carries.any(1)
        if is_free_to_read(is_walking) and not bool(is_walking.any()):
            break
        node = carries.to(torch.uint8).argmax(1).where(is_walking, 0)
        path.append(node)
        if seen is not None:
            seen = seen.scatter(1, own_id[:, None], True)
    path += [torch.zeros_like(node)] * (max_depth + 1 - len(path))
    accepted_pos = torch.stack(path, 1)
    return Verdict(accepted_pos, 1 + (accepted_pos > 0).sum(1), next_id)
