"""What `cluster_union` means, in plain Python for one sequence."""

from __future__ import annotations

from collections.abc import Sequence


def cluster_union_reference(scores: Sequence[float], sizes: Sequence[int], num_rows: int) -> list[int]:
    """Positions in the list of all clusters' rows: whole clusters by falling score, the last one cut."""
    first = [sum(sizes[:cluster]) for cluster in range(len(sizes))]
    order = sorted(range(len(scores)), key=lambda cluster: -scores[cluster])
    rows = [first[cluster] + row for cluster in order for row in range(sizes[cluster])]
    return rows[:num_rows]
