"""The ids that a compiled drafter scores, in buffers whose addresses never change: updates need no recompilation."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakIdKeyDictionary


class VocabularyViews(NamedTuple):
    """What a compiled graph reads of a draft vocabulary: tensors that keep their address while contents change.

    vocab_size  V
    draft_ids   int64 [K]  distinct ids in any order; columns from `count` on repeat the id of column 0
    count       int32 [1]  number of active columns
    pack        weight [V, D] -> its rows of the active ids as they are now, [K, D], contiguous; the rows of unused
                columns are anything; None: read the weight
    """

    vocab_size: int
    draft_ids: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which no record needs
    pack: Callable[[Tensor], Tensor | None]


@runtime_checkable
class HasVocabularyViews(Protocol):
    """Whatever may be the `vocabulary` of the compile backend."""

    def vocabulary_views(self) -> VocabularyViews: ...


class DraftVocabulary:
    """A set of at most `capacity` (K) ids out of `vocab_size` (V), replaced as a whole by `update`.

    Meant for `torch.compile(draft, backend="nanospec", options={"vocabulary": vocabulary})`. It starts empty: every
    logit is -inf until the first update. Where the ids follow the text, a `LocalityTracker` keeps them without ever
    waiting for the device.

    Raises ValueError unless 1 <= capacity <= vocab_size.
    """

    def __init__(self, vocab_size: int, capacity: int = 3072, device: torch.device | str | None = None) -> None:
        if not 1 <= capacity <= vocab_size:
            raise ValueError(f"capacity must be between 1 and vocab_size {vocab_size}, got {capacity}")
        self.vocab_size, self.capacity = vocab_size, capacity
        with torch.inference_mode(False):  # ordinary tensors, writable in and outside inference mode
            self.draft_ids = torch.zeros(capacity, dtype=torch.int64, device=device)
            self.count = torch.zeros(1, dtype=torch.int32, device=device)
        self._packed = WeakIdKeyDictionary()  # weight -> _PackedRows, as long as the weight lives
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return (
            f"DraftVocabulary(vocab_size={self.vocab_size}, capacity={self.capacity}, device={self.draft_ids.device})"
        )

    def __deepcopy__(self, memo: dict[int, object]) -> DraftVocabulary:
        """Another vocabulary with the same ids: graphs that read this one do not read the copy."""
        twin = DraftVocabulary(self.vocab_size, self.capacity, self.draft_ids.device)
        twin.draft_ids.copy_(self.draft_ids)
        twin.count.copy_(self.count)
        return twin

    @torch.no_grad()
    def update(self, ids: Tensor | Sequence[int]) -> None:
        """Make `ids`, 1-D, in any order and with repetitions, the active ones; what stays keeps its column.

        The check of the ids waits for the device. Nothing is written unless they are right.

        Raises TypeError for ids that are no integers, ValueError for another shape, for an id outside [0, V) and for
        more than `capacity` distinct ids.
        """
        wanted = self._checked(ids)
        num_ids = wanted.shape[0]
        with self._lock:
            held = self.draft_ids[:num_ids]
            stays = torch.isin(held, wanted) & (torch.arange(num_ids, device=wanted.device) < self.count)
            slots = (~stays).nonzero()[:, 0]
            self.draft_ids[slots] = wanted[~torch.isin(wanted, held[stays])]
            self.draft_ids[num_ids:] = self.draft_ids[0].clone()
            self.count.fill_(num_ids)
            for weight, packed in self._packed.items():
                packed.update(weight, slots, self.draft_ids[slots])

    def pack(self, weight: Tensor) -> Tensor | None:
        """Rows [K, D] of `weight` [V, D], kept contiguous, once per weight, and in step with updates.

        A weight that was written in place since is copied anew. None where that could go unnoticed (weights made in
        inference mode), and off the CPU, where kernels read rows where they lie. Writes through `weight.data` escape.

        Raises ValueError for a weight with another number of rows.
        """
        if weight.dim() != 2 or weight.shape[0] != self.vocab_size:
            raise ValueError(f"weight must be [{self.vocab_size}, D], got shape {tuple(weight.shape)}")
        if weight.device.type != "cpu" or weight.is_inference():
            return None
        with self._lock:
            packed = self._packed.get(weight)
            if packed is None or packed.state != _state(weight):
                with torch.inference_mode(False), torch.no_grad():
                    packed = self._packed[weight] = _PackedRows(_state(weight), weight[self.draft_ids])
            return packed.rows

    def vocabulary_views(self) -> VocabularyViews:
        return VocabularyViews(self.vocab_size, self.draft_ids, self.count, self.pack)

    def _checked(self, ids: Tensor | Sequence[int]) -> Tensor:
        """Distinct ids, ascending, on the device of the buffers."""
        given = torch.as_tensor(ids)
        if given.numel() == 0:
            given = given.long()
        if given.dtype == torch.bool or given.is_floating_point() or given.is_complex():
            raise TypeError(f"ids must be integers, got {given.dtype}")
        if given.dim() != 1:
            raise ValueError(f"ids must be 1-D, got shape {tuple(given.shape)}")
        distinct = given.to(self.draft_ids.device, torch.int64).unique()
        outside = distinct[(distinct < 0) | (distinct >= self.vocab_size)]
        if outside.numel():
            raise ValueError(f"ids must be between 0 and {self.vocab_size - 1}, got {int(outside[0])}")
        if distinct.shape[0] > self.capacity:
            raise ValueError(f"ids must hold at most capacity {self.capacity} distinct ids, got {distinct.shape[0]}")
        return distinct


class _PackedRows(NamedTuple):
    """Head rows [K, D] and the state of their weight when they were copied."""

    state: tuple
    rows: Tensor

    def update(self, weight: Tensor, slots: Tensor, ids: Tensor) -> None:
        """Copy the rows of `ids` into `slots`, int64 [m]; not from a weight that has changed: `pack` sees to it."""
        if self.state == _state(weight):
            self.rows.index_copy_(0, slots, weight.detach().index_select(0, ids))


def _state(weight: Tensor) -> tuple:
    """Where a weight lies, as what, and how often it was written in place.

    A weak reference to the memory, because an address may come back for other numbers.
    """
    memory = StorageWeakRef(weight.untyped_storage())
    return memory, weight.storage_offset(), weight.stride(), weight.dtype, weight.shape, weight._version
