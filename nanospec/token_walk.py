"""The walk over a draft tree whose tokens somebody else chooses, one position after the other, in code on the host."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from nanospec.records import DraftTree, Verdict


class TokenChooser(Protocol):
    """Says every token of an output: called once per position, in order, as plain decoding would call it.

    So its rule may keep state, draw random numbers and look at the whole text; drafting shows it nothing that is not
    in the output.
    """

    @property
    def is_done(self) -> bool:
        """Whether the token chosen last ended the output."""

    def choose(self, logits: Tensor) -> int:
        """The next token, from the target's logits [1, V] after the last one."""


def accept_chosen(tree: DraftTree, logits: Tensor, chooser: TokenChooser, max_depth: int) -> Verdict:
    """The path along which every node carries the token that `chooser` says at its parent; it ends where no node does,
    or where the output does.

    logits [1, T, V]: the target's at every node; no used node is deeper than max_depth. The host reads the tree and
    every token: a chooser is host code. Raises ValueError for more than one sequence.

    Example: a root with children 5 and 7, where the chooser says 7 and then 9, accepts the root and node 7 and says 9
    next.
    """
    if tree.token_ids.shape[0] != 1:
        raise ValueError(f"tree must hold one sequence, got {tree.token_ids.shape[0]}")
    token_ids, parents = tree.token_ids[0].tolist(), tree.parent_pos[0].tolist()
    children = {(parents[node], token_ids[node]): node for node in range(1, len(token_ids)) if token_ids[node] >= 0}
    path: list[int] = []
    node: int | None = 0
    while node is not None:
        path.append(node)
        token_id = chooser.choose(logits[:, node])
        node = None if chooser.is_done else children.get((node, token_id))
    assert len(path) <= max_depth + 1, "a node is deeper than max_depth"
    padded = path + [0] * (max_depth + 1 - len(path))
    numbers = torch.tensor([*padded, len(path), token_id], device=logits.device)
    return Verdict(numbers[None, : max_depth + 1], numbers[max_depth + 1 :][:1], numbers[max_depth + 2 :])
