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
    """int64 [B, 5 + L] on the device, a row for each sequence for `StepOutcome.from_list`.

    following int64 [B, L]  as of `tokens_after_path`; top_values [B, T, k]  the target's best logits at every node;
    count [B or 1]          active columns of the vocabulary; num_lacking int64 [B], None for 0: see `AdaptiveVocab`

    Non-finite logits show in the largest one; what the target thinks of rejected nodes is nobody's business.
    """
    is_bad = ~top_values[..., 0].gather(1, verdict.accepted_pos).isfinite()
    first_bad = torch.where(is_bad.any(1), is_bad.int().argmax(1), -1)
    num_drafted = (tree.token_ids[:, 1:] >= 0).sum(1)
    num_lacking = torch.zeros_like(first_bad) if num_lacking is None else num_lacking
    numbers = verdict.num_accepted, count.long().expand_as(first_bad), first_bad, num_drafted, num_lacking
    return torch.cat((torch.stack(numbers, 1), following), 1)


def tokens_after_path(tree: DraftTree, verdict: Verdict) -> Tensor:
    """int64 [B, L]: the token after each node of the accepted path, the bonus token after the last and from there on.

    Example: tokens 7, 8, 9 on the path (the root is 7) and bonus token 5 give 8, 9, 5, 5, ..
    """
    following = tree.token_ids.gather(1, verdict.accepted_pos).roll(-1, 1)
    place = torch.arange(following.shape[1], device=following.device)
    return torch.where(place >= verdict.num_accepted[:, None] - 1, verdict.next_id[:, None], following)


def tokens_after_nodes(tree: DraftTree, verdict: Verdict, following: Tensor) -> Tensor:
    """int64 [B, T]: what follows each accepted node in the text, -1 at the others; following as `tokens_after_path`."""
    num_nodes = tree.token_ids.shape[1]
    is_beyond = torch.arange(following.shape[1], device=following.device) >= verdict.num_accepted[:, None]
    position = torch.where(is_beyond, num_nodes, verdict.accepted_pos)
    after = torch.nn.functional.pad(torch.full_like(tree.token_ids, -1), (0, 1))
    return after.scatter(1, position, following)[:, :num_nodes]


def observation_of(tree: DraftTree, verdict: Verdict, top_ids: Tensor, following: Tensor) -> Observation:
    """What a step shows a vocabulary: the tree, the target's best ids at every node [B, T, k], what was kept."""
    return Observation(tree.token_ids, top_ids, tokens_after_nodes(tree, verdict, following))
