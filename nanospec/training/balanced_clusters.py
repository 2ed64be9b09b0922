"""Clusters of head rows of equal size: spherical 2-means that halves its input, again and again.

A shortlist of few rows has room for many clusters only if they are small and alike in size. The k-means of the usual
libraries leaves sizes to chance: with 2,048 centres over the head of the embedded pair, scikit-learn's MiniBatchKMeans
gave half of them one row or none, and one of them 1,558, at the same mean cosine to the centre as this. Recursive
halving is how label trees of extreme classification are made (Prabhu et al. 2018, Parabel), and takes seconds.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

NUM_ROUNDS = 8  # of 2-means per split; the halves hardly change after that


def balanced_clusters(rows: Tensor, num_clusters: int, seed: int = 0) -> list[Tensor]:
    """rows [V, D] -> positions of the rows of each cluster, int64 [about V / num_clusters]; together all, each once.

    Rows count by their direction alone. Raises ValueError unless num_clusters is in [1, V].
    """
    if not 1 <= num_clusters <= rows.shape[0]:
        raise ValueError(f"num_clusters must be in [1, {rows.shape[0]}], got {num_clusters}")
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(rows.float(), dim=1)
    open_groups, clusters = [(torch.arange(rows.shape[0]), num_clusters)], []
    while open_groups:
        group, parts = open_groups.pop()
        if parts == 1:
            clusters.append(group)
            continue
        left_parts = parts // 2
        left, right = _split(directions[group], group.shape[0] * left_parts // parts, generator)
        open_groups += [(group[left], left_parts), (group[right], parts - left_parts)]
    return clusters


def _split(directions: Tensor, num_left: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positions of the `num_left` directions that lie nearest to one of two centres, relative to the other, and the
    others."""
    first, second = directions[torch.randperm(directions.shape[0], generator=generator)[:2]]
    for _ in range(NUM_ROUNDS):
        order = (directions @ (first - second)).argsort(descending=True, stable=True)
        left, right = order[:num_left], order[num_left:]
        first, second = (F.normalize(directions[part].mean(0), dim=0) for part in (left, right))
    return left, right
