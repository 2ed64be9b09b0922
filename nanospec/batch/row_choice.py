"""Rows of a batch that choose their tokens in different ways, verified way by way and put together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from nanospec.records import DraftTree, Verdict
from nanospec.sampling import SamplingParams
from nanospec.target import Verification
from nanospec.verifier import verify


class RowChoice(NamedTuple):
    """How the rows of a batch choose.

    groups  sampling parameters and the rows that have them, int64 [m], or None for all rows
    order   int64 [B]: where each row stands among the rows of all groups one after the other
    """

    groups: list[tuple[SamplingParams, Tensor | None]]
    order: Tensor | None

    @classmethod
    def of(cls, samplings: Sequence[SamplingParams], device: torch.device) -> RowChoice:
        """Rows whose parameters differ by the seed alone are one group: their numbers are drawn already.

        Example: greedy, sampled, greedy gives the groups [0, 2] and [1] and the order [0, 2, 1].
        """
        by_params: dict[SamplingParams, list[int]] = {}
        for row, sampling in enumerate(samplings):
            by_params.setdefault(replace(sampling, seed=None), []).append(row)
        if len(by_params) == 1:
            return cls([(next(iter(by_params)), None)], None)
        groups = [(params, torch.tensor(rows, device=device)) for params, rows in by_params.items()]
        placed = [row for rows in by_params.values() for row in rows]
        order = sorted(range(len(placed)), key=placed.__getitem__)
        return cls(list(groups), torch.tensor(order, device=device))


def verify_rows(
    choice: RowChoice, tree: DraftTree, output: Verification, u: Tensor, seen: Tensor | None, max_depth: int
) -> Verdict:
    """As `verify` row by row, each with its own parameters: u float64 [B, L], seen bool [B, V] where some row has a
    penalty."""
    best_id = output.top_ids[..., 0]
    if choice.order is None:
        return verify(tree, best_id, output.logits, choice.groups[0][0], u, seen, max_depth=max_depth)
    verdicts = []
    for params, rows in choice.groups:
        assert rows is not None, "several groups have rows each"
        logits = output.logits.index_select(0, rows) if params.needs_full_logits else None
        part = DraftTree(*(field.index_select(0, rows) for field in tree))
        seen_here = None if seen is None else seen.index_select(0, rows)
        best_here, u_here = best_id.index_select(0, rows), u.index_select(0, rows)
        verdicts.append(verify(part, best_here, logits, params, u_here, seen_here, max_depth=max_depth))
    columns = (torch.cat(column) for column in zip(*verdicts, strict=True))
    return Verdict(*(column.index_select(0, choice.order) for column in columns))
