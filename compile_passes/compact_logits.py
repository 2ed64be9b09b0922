"""What rewritten graphs call: logits over K draft ids in place of logits over V, and their consumers.

Compact logits [.., K] stand for wide ones [.., V]: column j belongs to the id `draft_ids[j]`, other ids hold `fill`.
`draft_ids` int64 [K] are distinct in their first `count` int32 [1] columns; the columns behind are unused, repeat the
first id and hold `fill` too. `fill` is the least value that the wide tensor can hold: -inf for logits and
log-probabilities, 0 for probabilities. `nan_spreads`: the values went through a softmax, so a row that holds one NaN
holds nothing else, at ids outside too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanospec.ops.smallest_id_topk import smallest_id_topk

_LAST_ID = 2**31 - 1  # behind every id of a vocabulary: padding loses every tie


def is_used(draft_ids: Tensor, count: Tensor) -> Tensor:
    """bool [K]: the columns below `count`."""
    return torch.arange(draft_ids.shape[0], device=draft_ids.device) < count


def mask_unused(compact: Tensor, draft_ids: Tensor, count: Tensor, fill: float) -> Tensor:
    """`compact` [.., K] with `fill` in the columns from `count` on."""
    return compact.masked_fill(~is_used(draft_ids, count), fill)


def scatter_to_vocabulary(
    compact: Tensor, draft_ids: Tensor, count: Tensor, vocab_size: int, fill: float, nan_spreads: bool = False
) -> Tensor:
    """The wide tensor [.., V] that `compact` [.., K] stands for; its gradient with respect to unused columns is 0."""
    # Unused columns repeat the first id and write what it writes; without gradient, so that its own is counted once.
    source = torch.where(is_used(draft_ids, count), compact, compact[..., :1].detach())
    wide = _outside(compact, fill, nan_spreads).expand(*compact.shape[:-1], vocab_size)
    return wide.scatter(-1, draft_ids.expand_as(compact), source)


def compact_argmax(
    compact: Tensor, draft_ids: Tensor, fill: float, nan_spreads: bool = False, keepdim: bool = False
) -> Tensor:
    """The smallest id int64 [..] that holds the largest value of the wide row (a NaN counts as the largest)."""
    best = compact.amax(-1, keepdim=True)
    no_id = torch.iinfo(torch.int64).max
    smallest = torch.where(_ties(compact, best), draft_ids, no_id).amin(-1, keepdim=True)
    # If ids outside tie with the best, nothing exceeds `fill` and all V ids tie.
    ids = torch.where(_ties(_outside(compact, fill, nan_spreads), best), 0, smallest)
    return ids if keepdim else ids.squeeze(-1)


def compact_max(
    compact: Tensor, draft_ids: Tensor, fill: float, nan_spreads: bool = False, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """(largest value [..], its smallest id int64 [..]) of the wide rows."""
    ids = compact_argmax(compact, draft_ids, fill, nan_spreads, keepdim)
    return compact.amax(-1, keepdim=keepdim), ids


def compact_topk(compact: Tensor, draft_ids: Tensor, count: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(values [.., k], ids int64 [.., k]): the k largest, descending, of equal ones the smallest id first.

    Where fewer than k ids are in use, the rest is (fill, draft_ids[0]).
    """
    ids = torch.where(is_used(draft_ids, count), draft_ids, _LAST_ID)
    values, best_ids = smallest_id_topk(compact, ids, k)
    return values, torch.where(best_ids == _LAST_ID, draft_ids[0], best_ids)


def _outside(compact: Tensor, fill: float, nan_spreads: bool) -> Tensor:
    """[.., 1]: what the wide row holds at ids outside of the draft vocabulary."""
    first = compact[..., :1].detach()
    outside = torch.full_like(first, fill)
    return torch.where(first.isnan(), first, outside) if nan_spreads else outside


def _ties(values: Tensor, best: Tensor) -> Tensor:
    return (values == best) | (values.isnan() & best.isnan())
