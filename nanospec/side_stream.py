"""Work that runs beside the current CUDA stream, between two points of it; elsewhere it runs in its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class SideStream:
    """A second stream of `device`: `fork` lets it go on from here, `join` lets the current one wait for it.

    The device waits, never the host, so both may lie inside a captured graph, where they become its branches. What the
    work reads must be kept alive until `join`; what it makes may be dropped at any time, as the next `fork` comes after
    its last use. Off CUDA both do nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __deepcopy__(self, memo: dict[int, object]) -> SideStream:
        return SideStream(torch.device("cpu") if self._stream is None else self._stream.device)

    @contextmanager
    def fork(self) -> Iterator[None]:
        """Inside, work is queued on the side, behind all that is queued now."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """What is queued from now on waits for all that was queued on the side."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
