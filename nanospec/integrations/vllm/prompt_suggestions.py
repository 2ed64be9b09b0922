"""The target's best ids at a prompt's last positions, which vLLM reads but does not score: hidden states are there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nanospec.ops.blocked_topk import blocked_topk

MOST_ROWS, LEAST_ROWS = 64, 16  # of logits at once


class ReadRows(NamedTuple):
    """One request's rows of a pass.

    num_read    rows of the hidden states, one for each token that was read
    num_scored  the last of these, whose logits vLLM computes
    position    of the first in the request's text
    num_known   tokens of the text so far, read or not
    """

    request_id: str
    num_read: int
    num_scored: int
    position: int
    num_known: int


def rows_to_score(pass_rows: Iterable[ReadRows], num_positions: int) -> dict[str, slice]:
    """Which rows of a pass's hidden states, request behind request, to score beside those that vLLM scores.

    They are the `num_positions` before the last known token, as far as this pass has read them: the same ones whether
    a prompt comes whole or in chunks. What a prefix cache held was not read; what was generated before a request was
    preempted is read anew, as part of its prompt.

    Example: a prompt of 5 read whole, then a request that verifies 2 drafts, and 3 positions: the first one's rows 1,
    2 and 3, and nothing of the second.
    """
    first, chosen = 0, {}
    for rows in pass_rows:
        start = max(rows.num_known - 1 - num_positions - rows.position, 0)
        stop = rows.num_read - rows.num_scored
        if start < stop:
            chosen[rows.request_id] = slice(first + start, first + stop)
        first += rows.num_read
    return chosen


def block_size(max_num_seqs: int) -> int:
    """How many rows of logits to hold at once: as many as there may be requests, which vLLM's profile makes room for,
    but not more than a product needs to be fast, nor so few that the head is read for each."""
    return max(min(max_num_seqs, MOST_ROWS), LEAST_ROWS)


def best_ids_of_rows(
    hidden: Tensor, rows: Mapping[str, slice], compute_logits: Callable[[Tensor], Any], num_top: int, num_at_once: int
) -> dict[str, Tensor]:
    """By request, int64 [n, k]: the target's best ids after each of its `rows` of hidden [N, D], best first.

    compute_logits: the target's own, [n, D] -> [n, V], called with at most `num_at_once` rows. Over several processes
    it is called as often in each, and may give None in all but one, which then learn nothing.
    """
    if not rows or num_top == 0:
        return {}
    best = []
    for block in torch.cat([hidden[part] for part in rows.values()]).split(num_at_once):
        logits = compute_logits(block)
        if logits is not None:
            best.append(blocked_topk(logits, min(num_top, logits.shape[1]))[1])
    if not best:
        return {}
    by_request = torch.cat(best).split([part.stop - part.start for part in rows.values()])
    return dict(zip(rows, by_request, strict=True))
