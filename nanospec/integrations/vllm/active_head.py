"""The draft's output projection over each request's own ids, from buffers that keep their addresses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanospec.gathered_head import GatheredHead
from nanospec.integrations.vllm.request_rows import RequestRows
from nanospec.records import DraftVocab

WIDTH_STEP = 64  # columns by which the computed width grows on a CPU


@dataclass(frozen=True)
class HeadShard:
    """The part of a vocab-parallel head that this process holds: rows first..behind-1 of the whole.

    sum_over_ranks  adds a tensor up over all processes
    """

    first: int
    behind: int
    sum_over_ranks: Callable[[Tensor], Tensor]


class ActiveHead:
    """Logits over the ids that `publish` set for the requests of the batch, in its order.

    Buffers are made once: positions int64 [R, K] rows of the draft's head, ids int64 [R, K] of the target, count int32
    [R]. A captured graph reads them where they are.

    is_full: drafting goes over the full head: nothing is published yet, or a request has no id that the draft can say.
    """

    def __init__(self, rows: RequestRows) -> None:
        self.rows, tracker = rows, rows.tracker
        self.is_full, self.num_requests = True, 0
        with torch.inference_mode(False):  # ordinary tensors, writable in and outside inference mode
            self.positions = tracker.draft_ids.clone()
            self.ids = self.positions if rows.target_ids is None else rows.target_ids[self.positions]
            self.count = tracker.count.clamp(min=1)  # what is never published is still a number
        self.width = tracker.capacity
        self._packed: tuple[Tensor, Tensor] | None = None  # a weight and its rows [B, width, D], until the next publish

    def publish(self, request_ids: Sequence[str]) -> None:
        """The ids of these requests are drafted from until the next call. Raises KeyError for one without a row."""
        num_requests, tracker = len(request_ids), self.rows.tracker
        self.num_requests, self._packed = num_requests, None
        self.is_full = num_requests == 0 or self.rows.any_empty(request_ids)
        if self.is_full:
            return
        index = self.rows.row_index(request_ids)
        torch.index_select(tracker.draft_ids, 0, index, out=self.positions[:num_requests])
        torch.index_select(tracker.count, 0, index, out=self.count[:num_requests])
        if self.rows.target_ids is not None:
            self.ids[:num_requests] = self.rows.target_ids[self.positions[:num_requests]]
        if self.count.device.type == "cpu":  # nothing waits there
            most = int(self.count[:num_requests].max())
            self.width = min(-(-most // WIDTH_STEP) * WIDTH_STEP, tracker.capacity)

    def read_buffers(self) -> None:
        """Score what the buffers hold, a row for each request, until the next `publish`: for a graph to be captured."""
        self.is_full, self.num_requests, self.width, self._packed = False, 0, self.rows.tracker.capacity, None

    def scores(self, hidden: Tensor, weight: Tensor, shard: HeadShard | None = None) -> tuple[Tensor, Tensor]:
        """hidden [N, D] -> logits [N, K'] over ids int64 [N, K'], -inf where unused; K' <= K.

        N is B, or more where every request has the same number of rows, one after the other, or the batch is padded
        behind its end. `weight` [V or a shard of it, D]. Raises what `GatheredHead` raises.
        """
        num_rows = hidden.shape[0]
        num_requests, per_request = num_rows, 1
        if self.num_requests and num_rows > self.num_requests and num_rows % self.num_requests == 0:
            num_requests, per_request = self.num_requests, num_rows // self.num_requests
        positions, count = self.positions[:num_requests, : self.width], self.count[:num_requests]
        grouped = hidden.view(num_requests, per_request, -1)
        if shard is not None:
            logits = _sharded_scores(grouped, weight, positions, count, shard)
        else:
            packed = self._rows_of(weight, positions)
            vocab = DraftVocab(positions, count, packed, all_active=packed is not None)
            logits = GatheredHead(weight)(grouped, vocab)
        unused = torch.arange(self.width, device=count.device) >= count[:, None]
        # A column that is not used repeats the first one's id, so it may hold its logit, too, when both are written.
        logits = torch.where(unused[:, None], logits[..., :1], logits)
        ids = self.ids[:num_requests, None, : self.width].expand(-1, per_request, -1)
        return logits.flatten(0, 1), ids.flatten(0, 1)

    def _rows_of(self, weight: Tensor, positions: Tensor) -> Tensor | None:
        """On a CPU the rows, copied once for all steps of a draft; elsewhere a kernel reads them where they lie."""
        if weight.device.type != "cpu":
            return None
        packed = self._packed
        if packed is None or packed[0] is not weight or packed[1].shape[:2] != positions.shape:
            rows = weight.detach().index_select(0, positions.flatten()).unflatten(0, positions.shape)
            packed = self._packed = (weight, rows)
        return packed[1]


def over_vocabulary(logits: Tensor, ids: Tensor, vocab_size: int) -> Tensor:
    """logits [N, K] over ids int64 [N, K] -> [N, V], -inf elsewhere; where an id comes again, so does its logit."""
    return logits.new_full((logits.shape[0], vocab_size), float("-inf")).scatter_(1, ids, logits)


def best_ids(logits: Tensor, ids: Tensor) -> Tensor:
    """logits [N, K] over ids int64 [N, K] -> int64 [N], the id of the largest."""
    return ids.gather(1, logits.argmax(1, keepdim=True))[:, 0]


def _sharded_scores(grouped: Tensor, weight: Tensor, positions: Tensor, count: Tensor, shard: HeadShard) -> Tensor:
    """[B, n, K]: every row of the head lies in one process, the others add zero: the sum is the logit itself."""
    is_own = (positions >= shard.first) & (positions < shard.behind)
    local = torch.where(is_own, positions - shard.first, 0)
    logits = GatheredHead(weight)(grouped, DraftVocab(local, count, None, all_active=True))
    return shard.sum_over_ranks(torch.where(is_own[:, None], logits, 0.0))
