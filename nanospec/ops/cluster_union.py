"""The union of the best clusters as a list of a fixed number of rows: what a router's scores become."""

from __future__ import annotations

import torch
from torch import Tensor


def cluster_union(scores: Tensor, sizes: Tensor, num_clusters: int, num_rows: int) -> tuple[Tensor, Tensor]:
    """Takes clusters by falling score until `num_rows` (K) rows are in; of the last one, its first rows.

    scores        [B, M]     of the clusters; those of equal score come in any order
    sizes         int64 [M]  rows of each, at least 1; the clusters lie one behind the other in one list
    num_clusters  m: as many as surely hold K rows, whichever they are (`clusters_needed`)

    Returns positions in that list int64 [B, K], distinct within a row, best cluster first; and int64 [B, M], the
    column where the rows of each cluster begin, -1 for a cluster that is not among the best m. It may lie at K or
    behind: then the cluster has no place. All shapes are fixed, and nothing waits for the device.

    Example: sizes [2, 3, 1], scores [[0.1, 0.9, 0.5]], K = 5: clusters 1, 2, 0, so positions [[2, 3, 4, 5, 0]] and
    columns [[4, 0, 3]].
    """
    best = scores.topk(num_clusters, -1).indices  # [B, m]
    best_sizes = sizes[best]
    ends = best_sizes.cumsum(-1)
    first_column = ends - best_sizes
    columns = torch.arange(num_rows, device=scores.device).expand(scores.shape[0], -1)
    rank = torch.searchsorted(ends, columns.contiguous(), right=True)  # [B, K]: whose rows stand in each column
    shift = (sizes.cumsum(0) - sizes)[best] - first_column
    return columns + shift.gather(1, rank), torch.full_like(scores, -1, dtype=torch.int64).scatter_(
        1, best, first_column
    )


def clusters_needed(sizes: Tensor, num_rows: int) -> int:
    """The fewest clusters that hold `num_rows` rows whichever they are: on the host, once."""
    smallest_first = sizes.sort().values.cumsum(0)
    return min(int((smallest_first < num_rows).sum()) + 1, sizes.shape[0])
