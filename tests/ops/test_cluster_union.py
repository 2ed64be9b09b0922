"""The union of clusters against plain Python."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec.ops.cluster_union import cluster_union, clusters_needed
from nanospec.ops.cluster_union_reference import cluster_union_reference


def test_the_worked_example() -> None:
    sizes = torch.tensor([2, 3, 1])
    positions, columns = cluster_union(torch.tensor([[0.1, 0.9, 0.5]]), sizes, 3, 5)
    assert positions.tolist() == [[2, 3, 4, 5, 0]]
    assert columns.tolist() == [[4, 0, 3]]


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=8),
    share=st.floats(0, 1),
    batch=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_it_is_the_reference_with_as_few_clusters_as_are_surely_enough(sizes, share, batch, seed) -> None:
    num_rows = max(1, round(share * sum(sizes)))
    generator = torch.Generator().manual_seed(seed)
    scores = torch.stack([torch.randperm(len(sizes), generator=generator) for _ in range(batch)]).double()
    all_sizes = torch.tensor(sizes)
    num_clusters = clusters_needed(all_sizes, num_rows)
    positions, columns = cluster_union(scores, all_sizes, num_clusters, num_rows)
    assert sum(sorted(sizes)[:num_clusters]) >= num_rows > sum(sorted(sizes)[: num_clusters - 1])
    for row in range(batch):
        expected = cluster_union_reference(scores[row].tolist(), sizes, num_rows)
        assert positions[row].tolist() == expected
        for cluster, column in enumerate(columns[row].tolist()):
            first = sum(sizes[:cluster])
            assert (expected.index(first) if first in expected else -1) == (column if column < num_rows else -1)
