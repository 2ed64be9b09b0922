"""What one stage of a decoding step hands the next. Shapes are fixed for a run; what is unused is masked."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class DraftVocab(NamedTuple):
    """The token ids that the drafter scores in this step.

    draft_ids int64 [B, K]    ids of the full vocabulary; columns from `count` on repeat a valid id and are masked
    count     int32 [B]       number of active columns, at most K
    rows      [B, K, D]|None  head rows of `draft_ids`, contiguous (packed mode); None: read from the head (indexed)

    all_active: the caller knows on the host that no column is unused; nothing is masked then.

    head_pos int64 [B, K]|None  row of the drafter's head that scores each id; None: the ids themselves

    raise_scores(logits [B, n, K], token ids int64 [B, n] before them) -> logits: a prior on the scores; None: none

    at_level(states [B, n, D] of the nodes of one level, that level, 0 for the root) -> the vocabulary to score after
    them; None: this one at all levels

    look_ahead(token ids int64 [B, n] of the nodes of one level, states [B, n, D] before them, that level) is called
    before the drafter makes the level's states of these, so that what `at_level` needs may be computed meanwhile

    A leading dimension of 1 in `draft_ids` and `rows` means the same ids for every sequence.
    """

    draft_ids: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which no record needs
    rows: Tensor | None
    all_active: bool = False
    head_pos: Tensor | None = None
    raise_scores: Callable[[Tensor, Tensor], Tensor] | None = None
    at_level: Callable[[Tensor, int], DraftVocab] | None = None
    look_ahead: Callable[[Tensor, Tensor, int], None] | None = None

    def changed(self, change: Callable[[DraftVocab], DraftVocab]) -> DraftVocab:
        """`change` of this vocabulary and, where every level has its own, of each of those."""
        at_level = self.at_level
        if at_level is None:
            return change(self)
        return change(self)._replace(at_level=lambda states, level: change(at_level(states, level)))


class Observation(NamedTuple):
    """What one target pass said, over the prompt or over a draft tree: what a draft vocabulary learns from.

    token_ids int64 [B, n]     the tokens that the pass read, oldest first; -1: none
    top_ids   int64 [B, n, k]  the target's k best ids after each, best first
    next_ids  int64 [B, n]     what followed each in the text; -1: not known, as after a rejected node
    """

    token_ids: Tensor
    top_ids: Tensor
    next_ids: Tensor


class DraftTree(NamedTuple):
    """Candidate continuations, parents before children; node 0 is the root, the last token that is certain.

    token_ids     int64 [B, T]    -1: the node is unused and can never be accepted
    parent_pos    int64 [B, T]    position of the parent in this list; the root is its own parent
    depth         int64 [B, T]    0 at the root
    score         float32 [B, T]  cumulative log-probability under the drafter, 0 at the root
    ancestor_mask bool [B, T, T]  [i, j]: j is i or an ancestor of i

    Siblings have distinct token ids.
    """

    token_ids: Tensor
    parent_pos: Tensor
    depth: Tensor
    score: Tensor
    ancestor_mask: Tensor


class Verdict(NamedTuple):
    """What the target made of a tree.

    accepted_pos int64 [B, L]  positions of the accepted path in the tree, root first, then padded with 0; L = depth + 1
    num_accepted int64 [B]     length of that path, at least 1 (the root)
    next_id      int64 [B]     the target's own token after the path: the bonus token, root of the next tree

    Example: a tree with nodes 0 (root), 1 and 2 (children of 0), 3 (child of 2) whose path 0, 2, 3 is accepted gives
    accepted_pos [0, 2, 3], num_accepted 3; the step yields the tokens of nodes 2 and 3 and `next_id`: 3 tokens.
    """

    accepted_pos: Tensor
    num_accepted: Tensor
    next_id: Tensor
