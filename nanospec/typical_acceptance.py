"""Typical acceptance (Medusa, Cai et al. 2024, section 2.3.1): LOSSY, for use by name only.

A drafted token x after a node is kept if the target finds it likely enough, whether or not it would have said it:

    p(x) > min(epsilon, delta * exp(-H(p))),   H(p) = - sum_y p(y) log p(y)

with p the target's distribution there, temperature and filters applied, epsilon `posterior_threshold` and delta
`posterior_alpha`. The longest path of kept tokens wins, of equally long ones the likeliest. The output then follows the
drafter where the target is undecided: its distribution is not the target's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanospec.acceptance import path_to
from nanospec.records import DraftTree, Verdict
from nanospec.sampling import SamplingParams, choose, penalize, target_distribution


def accept_typical(
    tree: DraftTree, logits: Tensor, params: SamplingParams, u: Tensor, seen: Tensor | None, max_depth: int
) -> Verdict:
    """The longest path whose tokens all pass the typical rule; the token after it is drawn from p as it is anyway.

    Arguments as `accept_sampled`: the number for the depth of the path's end draws the token after it. Fixed shapes, no
    host sync; float64 [B, T, V] is held.
    """
    batch, num_nodes, vocab_size = logits.shape
    if seen is not None:
        logits = penalize(logits.double(), _seen_at_nodes(tree, seen), params.repetition_penalty)
    p = target_distribution(logits.flatten(0, 1), params).view(batch, num_nodes, vocab_size)
    threshold = least_probability(p, params)
    p_own = p.flatten(1).gather(1, tree.parent_pos * vocab_size + tree.token_ids.clamp(min=0))  # at the parent
    is_kept = (p_own > threshold.gather(1, tree.parent_pos)) & (tree.token_ids >= 0)
    is_kept[:, 0] = True  # the root is certain
    accepted = is_kept & (is_kept[:, None, :] | ~tree.ancestor_mask).all(-1)
    own_log = p_own.log().where(is_kept, 0.0)
    own_log[:, 0] = 0.0  # the root's token is no choice of the path
    path_log = torch.where(tree.ancestor_mask, own_log[:, None, :], 0.0).sum(-1)
    depth = tree.depth.where(accepted, -1)
    end = path_log.where(depth == depth.amax(1, keepdim=True), -torch.inf).argmax(1)
    rows = torch.arange(batch, device=end.device)
    next_id = choose(p[rows, end], u[rows, tree.depth[rows, end]])
    return Verdict(*path_to(tree, end, max_depth), next_id)


def least_probability(p: Tensor, params: SamplingParams) -> Tensor:
    """float64 [..]: what a token must exceed after a node with distribution p [.., V].

    Example: p = [1, 0] has entropy 0, so delta or epsilon, the smaller; p = [0.5, 0.5] gives min(epsilon, delta / 2).
    """
    by_entropy = params.posterior_alpha * torch.exp(-torch.special.entr(p).sum(-1))
    return by_entropy.clamp(max=params.posterior_threshold)


def _seen_at_nodes(tree: DraftTree, seen: Tensor) -> Tensor:
    """bool [B, T, V]: seen [B, V], which holds the root, and the tokens on the way to each node."""
    on_the_way = tree.token_ids[:, None, :].where(tree.ancestor_mask, tree.token_ids[:, :1, None]).clamp(min=0)
    return seen[:, None].repeat(1, tree.token_ids.shape[1], 1).scatter_(2, on_the_way, True)
