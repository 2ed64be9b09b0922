"""The draft vocabularies of vLLM's requests: one row of a tracker per request id, wherever it is in the batch."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from nanospec.locality_tracker import LocalityTracker
from nanospec.records import Observation
from nanospec.vocab.reduced import head_positions
from nanospec.vocab.sources import IN_CONTEXT_SOURCES, gather_candidates

PROMPT_CHUNK = 1024  # ids of a prompt that one update takes
NOTHING: Mapping[str, Tensor] = MappingProxyType({})


class RequestRows:
    """The ids near each of up to `max_requests` (R) requests, as rows of the draft's head.

    vocab_size  ids of the target (V)
    capacity    most ids of one request (K); fewer where the draft's head has fewer rows
    pinned_ids  int64 [P], the target's ids that are always among them; those that the draft cannot say are left out,
                and of the rest the first K
    target_ids  int64 [rows of the draft's head], the id that each scores (EAGLE-3's d2t); None: row i scores id i

    A request that leaves gives its row back, and a row starts empty: none sees what another's text was made of. Rows
    are taken from the front, so that updates read only as far as requests go.

    Raises ValueError as `LocalityTracker`.
    """

    def __init__(
        self,
        vocab_size: int,
        capacity: int,
        max_requests: int,
        pinned_ids: Tensor | None = None,
        target_ids: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        num_rows = vocab_size if target_ids is None else target_ids.shape[0]
        self.vocab_size = vocab_size
        self.target_ids = None if target_ids is None else target_ids.to(device)
        self._head_pos = None if target_ids is None else head_positions(target_ids.cpu(), vocab_size)
        capacity = min(capacity, num_rows)
        pinned_pos = None if pinned_ids is None else self._host_positions(pinned_ids.cpu())[:capacity]
        # On whatever device vLLM loads its models; ordinary tensors, writable in and outside inference mode.
        with torch.device("cpu"), torch.inference_mode(False):
            self.tracker = LocalityTracker(num_rows, capacity, max_requests, pinned_pos, device)
        self._head_pos_on_device = None if self._head_pos is None else self._head_pos.to(device)
        self._row_of: dict[str, int] = {}
        self._owner: dict[str, object] = {}
        self._free = list(range(max_requests))
        self._may_be_empty: set[str] = set()
        self._last_index: tuple[list[str], Tensor] | None = None  # batches rarely change

    @property
    def device(self) -> torch.device:
        return self.tracker.count.device

    @property
    def num_used(self) -> int:
        """Rows from the first one on that hold all requests."""
        return max(self._row_of.values(), default=-1) + 1

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._row_of

    def __len__(self) -> int:
        return len(self._row_of)

    def enter(
        self,
        request_ids: Sequence[str],
        living: Mapping[str, object],
        known_ids: Callable[[str], Sequence[int]],
        prompt_top_ids: Mapping[str, Tensor] = NOTHING,
    ) -> None:
        """Give each of a batch's requests a row: the one it has, or an empty one that is shown `known_ids` of it.

        living: every request that vLLM knows, by id; those that are gone, or whose object is another one under the
        same id, lose their rows, and where room is short those outside the batch do.

        prompt_top_ids: by request, int64 [n, k], the target's best ids at positions of its prompt. They count as older
        than the text, which is therefore shown again where a prompt comes in chunks.

        Raises ValueError for more than R requests.
        """
        self.keep_only(living)
        if sum(request_id not in self._row_of for request_id in request_ids) > len(self._free):
            self.keep_only({request_id: living[request_id] for request_id in request_ids})
        for request_id in request_ids:
            top_ids = prompt_top_ids.get(request_id)
            if request_id not in self._row_of:
                self.admit(request_id, known_ids(request_id), living[request_id], top_ids)
            elif top_ids is not None:
                self._show(self._row_of[request_id], self._sayable(known_ids(request_id)), top_ids)

    def keep_only(self, living: Mapping[str, object]) -> None:
        """All other requests have finished, were cancelled or make room: their rows are free."""
        nobody = object()
        gone = [name for name in self._row_of if living.get(name, nobody) is not self._owner[name]]
        for request_id in gone:
            heapq.heappush(self._free, self._row_of.pop(request_id))
            del self._owner[request_id]
            self._last_index = None
            self._may_be_empty.discard(request_id)

    def admit(
        self, request_id: str, token_ids: Sequence[int], owner: object = None, top_ids: Tensor | None = None
    ) -> None:
        """Give a request an empty row and show it what is known of its text, oldest first; other numbers count as none.

        owner: what `keep_only` is to find under the same id; top_ids int64 [n, k]: the target's best ids at positions
        of the text, best first.

        Raises ValueError for a request that has a row, and where all rows are taken.
        """
        if request_id in self._row_of:
            raise ValueError(f"request_id must be new, got {request_id!r}, which has a row")
        if not self._free:
            raise ValueError(f"at most {self.tracker.batch_size} requests may hold a row, got one more: {request_id!r}")
        row = self._row_of[request_id] = heapq.heappop(self._free)
        self._owner[request_id] = owner
        self.tracker.sequences(row, row + 1).reset()
        positions = self._sayable(token_ids)
        if positions.shape[0] == 0 and self.tracker.pinned_ids.shape[0] == 0:
            self._may_be_empty.add(request_id)
        self._show(row, positions, top_ids)

    def observe(self, request_ids: Sequence[str], token_ids: Tensor, top_ids: Tensor) -> None:
        """What one target pass said, for the requests of a batch in its order.

        token_ids integers [B, n]     tokens that came out, oldest first; outside the vocabulary: none
        top_ids   integers [B, m, k]  the target's best ids at every verified position, best first; -1: none
        """
        tokens = self._positions(token_ids)
        observation = Observation(tokens, self._positions(top_ids), tokens)
        candidates = gather_candidates(IN_CONTEXT_SOURCES, observation)  # [B, m * k + n]
        num_used = self.num_used
        by_row = candidates.new_full((num_used, candidates.shape[1]), -1)
        by_row.index_copy_(0, self.row_index(request_ids), candidates)
        self.tracker.sequences(0, num_used).observe(by_row)

    def row_index(self, request_ids: Sequence[str]) -> Tensor:
        """int64 [B]: the row of each. Raises KeyError for a request without one."""
        if self._last_index is None or self._last_index[0] != list(request_ids):
            index = torch.tensor([self._row_of[request_id] for request_id in request_ids], device=self.device)
            self._last_index = list(request_ids), index
        return self._last_index[1]

    def any_empty(self, request_ids: Sequence[str]) -> bool:
        """Whether one of them has no id that the draft can say.

        Waits for the device only for requests whose prompt held no such id, until they have one.
        """
        suspects = [request_id for request_id in request_ids if request_id in self._may_be_empty]
        if not suspects:
            return False
        counts = self.tracker.count[[self._row_of[request_id] for request_id in suspects]].tolist()
        self._may_be_empty.difference_update(
            request_id for request_id, count in zip(suspects, counts, strict=True) if count
        )
        return 0 in counts

    def _show(self, row: int, positions: Tensor, top_ids: Tensor | None) -> None:
        """Show a row a prompt: suggestions int64 [n, k] of the target, then the text int64 [m], as rows of the head."""
        text = positions.to(self.device)[None]
        top = text.new_empty(1, 0, 0) if top_ids is None else self._positions(top_ids)[None]
        candidates = gather_candidates(IN_CONTEXT_SOURCES, Observation(text, top, text))
        own = self.tracker.sequences(row, row + 1)
        for chunk in candidates.split(PROMPT_CHUNK, 1):
            own.observe(chunk)

    def _sayable(self, token_ids: Sequence[int]) -> Tensor:
        """int64 [n]: rows of the draft's head of a text's ids, on the host, without those that it cannot say."""
        return self._host_positions(torch.tensor(list(token_ids), dtype=torch.int64))

    def _positions(self, ids: Tensor) -> Tensor:
        """Ids of the target -> rows of the draft's head, -1 where it has none."""
        ids = ids.long()
        if self._head_pos_on_device is None:
            return ids
        return self._head_pos_on_device[torch.where((ids < 0) | (ids >= self.vocab_size), self.vocab_size, ids)]

    def _host_positions(self, ids: Tensor) -> Tensor:
        """int64 [n] ids on the host -> rows of the draft's head of those that are sayable."""
        ids = ids[(ids >= 0) & (ids < self.vocab_size)]
        if self._head_pos is None:
            return ids
        positions = self._head_pos[ids]
        return positions[positions >= 0]
