"""The processes that decode one request together: they must take the same steps, or wait for each other for ever."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

Record = TypeVar("Record", bound=tuple)


class Ranks:
    """The processes over which a target is sharded; one process alone by default, for which nothing happens here.

    All of them run the same loop on the same request. What they compute is rounded, and need not be rounded alike:
    hence everything that decides a shape, a token or what is drafted from is rank 0's, by `agree`.
    """

    def __init__(self, group: ProcessGroup | None = None, device: torch.device | None = None) -> None:
        self.group, self.device = group, device
        self.size = 1 if group is None else dist.get_world_size(group)

    def agree(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What rank 0 holds, in tensors of the same shapes and dtypes; one broadcast for all of them."""
        if self.size == 1:
            return tensors
        parts = [tensor.contiguous().flatten().view(torch.uint8) for tensor in tensors]
        packed = torch.cat(parts)
        dist.broadcast(packed, group=self.group, group_src=0)
        received = packed.split([part.numel() for part in parts])
        # Cloned: a view as another dtype must begin at a multiple of its size.
        return tuple(
            part.clone().view(tensor.dtype).view(tensor.shape) for part, tensor in zip(received, tensors, strict=True)
        )

    def agree_on(self, record: Record) -> Record:
        """A NamedTuple of tensors, or of whole numbers, as rank 0 holds it."""
        if self.size == 1:
            return record
        if all(isinstance(part, Tensor) for part in record):
            return type(record)(*self.agree(*record))
        numbers = torch.tensor(record, device=self.device)
        return type(record)(*self.agree(numbers)[0].tolist())

    def check_same(self, what: str, parts: Callable[[], Iterable[Any]]) -> None:
        """Raises ValueError, on all ranks alike, unless what `parts` returns is the same everywhere, by its repr.

        Different ones would decode different texts, or wait for each other for ever.
        """
        if self.size == 1:
            return
        digest = hashlib.sha256("\n".join(map(repr, parts())).encode()).digest()
        mine = torch.frombuffer(bytearray(digest), dtype=torch.uint8).to(self.device)
        gathered = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(gathered, mine, group=self.group)
        differing = [rank for rank, other in enumerate(gathered) if not torch.equal(other, gathered[0])]
        if differing:
            raise ValueError(
                f"{what} must be the same on all {self.size} ranks, got others than rank 0's on {differing}"
            )
