"""From counts to a list: what must be there first, then the most frequent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rank_ids(counts: Tensor, kept_ids: Sequence[int] = (), num_ids: int | None = None) -> Tensor:
    """int64 [N]: `kept_ids` in their order, then all others that occurred, most frequent first, ties to the smaller id.

    counts int64 [V]. An id that never occurred is left out unless it is kept. Any beginning of the list that is as long
    as `kept_ids` holds all of them, so that it may be cut to every size.
    Example: counts [5, 0, 7, 5] with id 1 kept gives [1, 2, 0, 3].

    Raises ValueError for a kept id outside the vocabulary, and unless num_ids, where it is given, is at least the
    number of kept ids and at most what the list then has.
    """
    kept = list(dict.fromkeys(kept_ids))
    outside = [token_id for token_id in kept if not 0 <= token_id < counts.shape[0]]
    if outside:
        raise ValueError(f"kept_ids must be between 0 and {counts.shape[0] - 1}, got {outside[0]}")
    by_count = counts.sort(descending=True, stable=True).indices
    first = torch.tensor(kept, dtype=torch.int64)
    others = by_count[(counts[by_count] > 0) & ~torch.isin(by_count, first)]
    ids = torch.cat((first, others))
    if num_ids is None:
        return ids
    least = max(1, len(kept))
    if not least <= num_ids <= ids.shape[0]:
        raise ValueError(
            f"num_ids must be between {least}, the ids that are always kept, and {ids.shape[0]}, all that occurred "
            f"and these, got {num_ids}"
        )
    return ids[:num_ids]


def coverage(counts: Tensor, ids: Tensor) -> Tensor:
    """float64 [N]: the share of all occurrences that are of the first 1, 2, .. N of `ids`; 0 if nothing occurred."""
    return counts[ids].cumsum(0).double() / max(int(counts.sum()), 1)
