"""What the host learns of a decoding step, in one transfer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nanospec.records import DraftTree, Observation, Verdict


class StepOutcome(NamedTuple):
    """num_accepted nodes (the root included), active rows of the vocabulary afterwards, the first accepted node with
    non-finite target logits or -1, how many nodes were drafted, how many new tokens the context of an adaptive
    vocabulary lacked, and the new token ids, the bonus token last."""

    num_accepted: int
    num_active: int
    bad_node: int
    num_drafted: int
    num_lacking: int
    token_ids: list[int]

    @classmethod
    def from_list(cls, packed: list[int]) -> StepOutcome:
        """From the numbers of `pack_outcome`."""
        num_accepted, num_active, bad_node, num_drafted, num_lacking, *token_ids = packed
        return cls(num_accepted, num_active, bad_node, num_drafted, num_lacking, token_ids[:num_accepted])


def pack_outcome(
    tree: DraftTree,
    verdict: Verdict,
    following: Tensor,
    top_values: Tensor,
    count: Tensor,
    num_lacking: Tensor | None = None,
) -> Tensor:
    """int64 [5 + L] on the device, for `StepOutcome.from_list`.

    following int64 [L]  as of `tokens_after_path`; top_values [1, T, k]  the target's best logits at every node;
    count [B or 1]       active columns of the vocabulary; num_lacking int64 [1], None for 0: see `AdaptiveVocab`

    Non-finite logits show in the largest one; what the target thinks of rejected nodes is nobody's business.
    """
    is_bad = ~top_values[0, verdict.accepted_pos[0], 0].isfinite()
    first_bad = torch.where(is_bad.any(), is_bad.int().argmax(), -1)
    num_drafted = (tree.token_ids[0, 1:] >= 0).sum()
    num_lacking = torch.zeros_like(verdict.num_accepted) if num_lacking is None else num_lacking
    numbers = torch.stack((count.max().long(), first_bad, num_drafted))
    return torch.cat((verdict.num_accepted, numbers, num_lacking, following))


def tokens_after_path(tree: DraftTree, verdict: Verdict) -> Tensor:
    """int64 [L]: the token after each node of the accepted path, the bonus token after the last and from there on.

    Example: tokens 7, 8, 9 on the path (the root is 7) and bonus token 5 give 8, 9, 5, 5, ..
    """
    following = tree.token_ids[0, verdict.accepted_pos[0]].roll(-1)
    is_beyond = torch.arange(following.shape[0], device=following.device) >= verdict.num_accepted - 1
    return torch.where(is_beyond, verdict.next_id, following)


def tokens_after_nodes(tree: DraftTree, verdict: Verdict, following: Tensor) -> Tensor:
    """int64 [1, T]: what follows each accepted node in the text, -1 at the others; following as `tokens_after_path`."""
    num_nodes = tree.token_ids.shape[1]
    is_beyond = torch.arange(following.shape[0], device=following.device) >= verdict.num_accepted
    position = torch.where(is_beyond, num_nodes, verdict.accepted_pos[0])
    after = torch.full_like(tree.token_ids, -1)
    return torch.nn.functional.pad(after, (0, 1)).scatter(1, position[None], following[None])[:, :num_nodes]


def observation_of(tree: DraftTree, verdict: Verdict, top_ids: Tensor, following: Tensor) -> Observation:
    """What a step shows a vocabulary: the tree, the target's best ids at every node [1, T, k], what was kept."""
    return Observation(tree.token_ids, top_ids, tokens_after_nodes(tree, verdict, following))
