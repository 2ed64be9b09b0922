"""The draft vocabulary that a trained router picks anew for every level of the tree (DynaSpec, arXiv:2510.13847)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nanospec.head_shard import HeadShard, head_shard, whole_head
from nanospec.ops.cluster_union import cluster_union, clusters_needed
from nanospec.records import DraftVocab, Observation
from nanospec.side_stream import SideStream
from nanospec.vocab.router import Router


class _Ahead(NamedTuple):
    """What was picked for a level on the side, and what that reads."""

    level: int
    chosen: DraftVocab
    inputs: tuple[Tensor, Tensor]


class RoutedVocab(nn.Module):
    """At every level of a tree the clusters of `head_weight` [V, D] that `router` scores best for its states.

    num_rows  rows of each level (K), the root's children first: whole clusters fill them, the last one cut. Levels
              behind the last entry have as many as it
    packed    keep a copy of the head, cluster by cluster, so that a level's rows are gathered as blocks: faster on a
              CPU, for the memory of a head. False: they are read from the head
    ahead     where the router looks ahead, levels below the root are picked while the drafter computes their states,
              on a stream of their own, from what the states are computed from: picked less well. None: on CUDA

    The union is over the nodes of a level: a cluster counts with the best score that any of them gives it. Its shape is
    fixed and no column unused.

    Raises ValueError for a router of another head, for numbers of rows that are not in [1, V], and for ahead=True with
    a router that does not look ahead; NotImplementedError for a sharded head: what a router picks by rounded states may
    differ from process to process.
    """

    observes: bool = False
    first_column: Tensor
    cluster_of: Tensor
    place_of: Tensor
    count: Tensor
    _ahead: _Ahead | None

    def __init__(
        self,
        head_weight: Tensor | HeadShard,
        router: Router,
        num_rows: int | Sequence[int],
        packed: bool = False,
        ahead: bool | None = None,
    ) -> None:
        super().__init__()
        if head_shard(head_weight) is not None:
            raise NotImplementedError("vocab must not be routed over a sharded head")
        head_weight = whole_head(head_weight)
        router.check_head(head_weight)
        router = copy.deepcopy(router).to(head_weight.device, head_weight.dtype).requires_grad_(False)
        self.head_weight = head_weight.detach()  # a plain attribute: neither saved nor moved with this module
        self.router = router
        # Plain attributes, like the head: rows cluster by cluster [V, D].
        self.rows = self.head_weight.index_select(0, router.token_ids) if packed else None
        self.num_rows = (num_rows,) if isinstance(num_rows, int) else tuple(num_rows)
        check_rows(self.num_rows, head_weight.shape[0])
        self._num_clusters = tuple(clusters_needed(router.sizes, rows) for rows in self.num_rows)
        self.name = f"routed-{_without_repeats(self.num_rows)}"
        self._looks_ahead = _resolve_ahead(ahead, router, head_weight.device)
        self._side, self._ahead = SideStream(head_weight.device), None
        cluster_of, place_of = router.positions()
        self._last_rows = self._mean_rows = round(sum(self.num_rows) / len(self.num_rows))
        buffers = {
            "cluster_of": cluster_of,
            "place_of": place_of,
            "first_column": (router.sizes.cumsum(0) - router.sizes)[None],
            "count": torch.tensor([self._mean_rows], dtype=torch.int32, device=head_weight.device),
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    def reset(self, rows: Tensor | None = None) -> None:
        """Nothing to forget."""

    def learn(self, observation: Observation) -> None:
        """Nothing to learn."""

    def for_batch(self, batch_size: int) -> RoutedVocab:
        """The same over the same memory, with a level drafted last of its own: serves any number of sequences."""
        other = copy.copy(self)
        other._buffers = dict(self._buffers)
        other._side, other._ahead = copy.deepcopy(self._side), None
        return other

    def select(self, width: int | None = None) -> DraftVocab:
        """What is drafted from is `at_level` of this; before any state is known, the ids wanted most often, as many as
        a level has on average."""
        ids = self.router.token_ids[None, : self._mean_rows]
        rows = None if self.rows is None else self.rows[None, : self._mean_rows]
        look_ahead = self.look_ahead if self._looks_ahead else None
        return DraftVocab(ids, self.count, rows, all_active=True, at_level=self.at_level, look_ahead=look_ahead)

    def look_ahead(self, token_ids: Tensor, states: Tensor, level: int) -> None:
        """Picks what `at_level` of this level will return, beside what runs meanwhile: from token_ids int64 [B, n], the
        nodes of the level as rows of the head, and states [B, n, D] before them."""
        with self._side.fork():
            scores = self.router.score_ahead(self.head_weight[token_ids], states)
            # With what is read on the side: nothing else may take that memory before `join`.
            self._ahead = _Ahead(level, self._pick(scores, level), (token_ids, states))

    def at_level(self, states: Tensor, level: int) -> DraftVocab:
        """The ids to score after states [B, n, D], the nodes of tree level `level` (0: the root)."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or ahead.level != level:
            return self._pick(self.router(states), level)
        self._side.join()
        return ahead.chosen

    def _pick(self, scores: Tensor, level: int) -> DraftVocab:
        """scores [B, n, M] of the nodes of a level -> its ids."""
        index = min(level, len(self.num_rows) - 1)
        num_rows, num_clusters = self.num_rows[index], self._num_clusters[index]
        positions, first_column = cluster_union(scores.amax(1), self.router.sizes, num_clusters, num_rows)
        self.first_column, self._last_rows = first_column, num_rows
        count = self.count.new_full((1,), num_rows)
        rows = None if self.rows is None else self.rows[positions]
        return DraftVocab(self.router.token_ids[positions], count, rows, all_active=True)

    def columns(self, ids: Tensor) -> Tensor:
        """ids int64 [B, ..] inside the vocabulary -> the column of each at the level drafted last, or -1."""
        first = self.first_column.gather(1, self.cluster_of[ids].flatten(1)).view_as(ids)
        column = first + self.place_of[ids]
        return column.masked_fill((first < 0) | (column >= self._last_rows), -1)


def _resolve_ahead(ahead: bool | None, router: Router, device: torch.device) -> bool:
    if ahead and router.ahead is None:
        raise ValueError("router must look ahead with ahead=True, got one that was not trained to")
    return (device.type == "cuda" if ahead is None else ahead) and router.ahead is not None


def for_levels(num_rows: tuple[int, ...], num_levels: int) -> tuple[int, ...]:
    """At least `num_levels` numbers of rows: the last one again where there are fewer."""
    return num_rows + num_rows[-1:] * (num_levels - len(num_rows))


def _without_repeats(num_rows: tuple[int, ...]) -> str:
    """(9, 6, 6) is "9,6": the last number goes on."""
    last = max((index for index, rows in enumerate(num_rows) if rows != num_rows[-1]), default=-1) + 1
    return ",".join(str(rows) for rows in num_rows[: last + 1])


def parse_rows(text: str) -> tuple[int, ...]:
    """Rows per level of "N" or "N,N,..". Raises ValueError for anything else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"rows must be N or N,N,.., rows per level of a tree, got {text!r}") from None


def check_rows(num_rows: tuple[int, ...], vocab_size: int) -> None:
    if not num_rows:
        raise ValueError("num_rows must name the rows of at least one level, got none")
    for rows in num_rows:
        if isinstance(rows, bool) or not isinstance(rows, int) or not 1 <= rows <= vocab_size:
            raise ValueError(f"num_rows must be whole numbers in [1, {vocab_size}], got {num_rows}")
