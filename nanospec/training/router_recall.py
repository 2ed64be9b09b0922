"""How much of what is wanted a router's shortlists hold, by their rows: recall@budget, on held-out text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nanospec.training.router_examples import RouterExamples
from nanospec.training.train_router import inputs_ahead
from nanospec.vocab.router import Router

BUDGETS = (256, 512, 1024, 2048, 4096, 8192)
CHUNK = 256  # states at a time: [256, V] is never needed, [256, M] is


def recall_report(router: Router, counts: Tensor, examples: RouterExamples) -> dict[str, Any]:
    """Shares of wanted rows inside shortlists of `rows` rows, for every state its own, by level and for all levels.

    counts int64 [V], of `wanted_counts`: the list of the rows wanted most often is what a router has to beat.

    target      the target's first choice
    draft       the best rows of the drafter over its whole head
    *_frequent  the same in the rows wanted most often
    """
    rank = torch.empty_like(counts).scatter_(0, counts.argsort(descending=True, stable=True), torch.arange(len(counts)))
    columns = wanted_columns(router, examples.states, torch.cat((examples.top_pos[..., :1], examples.draft_pos), -1))
    target, draft = examples.top_pos[..., :1], examples.draft_pos
    budgets = [rows for rows in BUDGETS if rows < router.vocab_size] or [max(router.vocab_size // 4, 1)]
    report: dict[str, Any] = {"rows": budgets, "states": examples.next_pos.numel()}
    report["target"] = _shares(columns[..., :1], target, budgets)
    report["target_frequent"] = _shares(rank[target.clamp(min=0)], target, budgets)
    if draft.shape[-1]:
        report["draft"] = _shares(columns[..., 1:], draft, budgets)
        report["draft_frequent"] = _shares(rank[draft.clamp(min=0)], draft, budgets)
    return report


def recall_ahead(router: Router, head_weight: Tensor, examples: RouterExamples, budgets: Sequence[int]) -> dict:
    """`target_ahead` and `draft_ahead` of `recall_report`; nothing for a router that does not look ahead."""
    if router.ahead is None:
        return {}
    inputs, is_there = inputs_ahead(head_weight, examples)
    wanted = torch.cat((examples.top_pos[..., :1], examples.draft_pos), -1)[:, 1:].masked_fill(~is_there[..., None], -1)
    columns = wanted_columns(router, inputs, wanted, router.ahead)
    report = {"target_ahead": _shares(columns[..., :1], wanted[..., :1], budgets)}
    if wanted.shape[-1] > 1:
        report["draft_ahead"] = _shares(columns[..., 1:], wanted[..., 1:], budgets)
    return report


@torch.no_grad()
def wanted_columns(
    router: Router, states: Tensor, wanted: Tensor, classifier: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """states [N, L, D] and rows of the head int64 [N, L, k] -> int64 [N, L, k]: where each row stands if all clusters
    are listed by falling score of its state. A shortlist of K rows holds the columns below K.

    classifier: states -> scores, in place of the router's own.
    """
    cluster_of, place_of = router.positions()
    columns = []
    for part, rows in zip(states.flatten(0, 1).split(CHUNK), wanted.flatten(0, 1).split(CHUNK), strict=True):
        order = (classifier or router)(part.float()).argsort(-1, descending=True)
        sizes = router.sizes[order]
        first_column = torch.empty_like(order).scatter_(1, order, sizes.cumsum(-1) - sizes)
        rows = rows.clamp(min=0)
        columns.append(first_column.gather(1, cluster_of[rows]) + place_of[rows])
    return torch.cat(columns).view_as(wanted)


def _shares(columns: Tensor, wanted: Tensor, budgets: Sequence[int]) -> dict[str, Any]:
    """Of wanted rows [N, L, k], -1 where there is none, those in columns below each budget: by level, and over all."""
    is_there = wanted >= 0
    by_level, overall = [], []
    for rows in budgets:
        held = (columns < rows) & is_there
        by_level.append((held.sum((0, 2)) / is_there.sum((0, 2)).clamp(min=1)).tolist())
        overall.append((held.sum() / is_there.sum().clamp(min=1)).item())
    return {"all": overall, "by_level": by_level}
