"""Many requests through one engine: read as rows become free, given out as they finish."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from nanospec.batch.engine import BatchEngine
from nanospec.result import GenerationResult

# Token ids alone, or "input_ids" and settings of `SpeculativeDecoder.generate` beside them.
BatchRequest = Tensor | Sequence[int] | Mapping[str, Any]


def generate_all(
    engine: BatchEngine, requests: Iterable[BatchRequest], settings: Mapping[str, Any]
) -> Iterator[tuple[int, GenerationResult]]:
    """(place among the requests, result) as they finish; `settings` hold where a request has none of its own.

    No request is read before there is a row for it. The engine is closed at the end, also when the consumer stops.
    """
    places: dict[int, int] = {}
    unread, is_read = iter(enumerate(requests)), False
    try:
        while True:
            while not is_read and engine.num_running + engine.num_waiting < engine.max_batch:
                entry = next(unread, None)
                is_read = entry is None
                if entry is not None:
                    place, request = entry
                    places[_submit(engine, request, settings)] = place
            if not engine.num_running + engine.num_waiting:
                return
            for piece in engine.step():
                if piece.error is not None:
                    piece.error.add_note(f"in request {places[piece.handle]}")
                    raise piece.error
                if piece.result is not None:
                    yield places.pop(piece.handle), piece.result
    finally:
        engine.close()


def _submit(engine: BatchEngine, request: BatchRequest, settings: Mapping[str, Any]) -> int:
    if not isinstance(request, Mapping):
        return engine.submit(request, **settings)
    if "input_ids" not in request:
        raise ValueError(f"a request must hold input_ids, got {sorted(request)}")
    return engine.submit(**{**settings, **request})
