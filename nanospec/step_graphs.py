"""Decoding steps of fixed shapes, one after the other: run as they are, or replayed as CUDA graphs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nanospec.decoding_step import DecodingStep, StepRecord
from nanospec.step_outcome import StepOutcome
from nanospec.tree_drafter import cache_rows_needed
from nanospec.tree_growers import model_of
from nanospec.weight_places import weight_places

MIN_WIDTH = 256  # rows of a cache that the smallest graph reads
WIDTHS_PER_OCTAVE = 4
MAX_GRAPHS = 17  # per step: widths from 256 to 4096, or the last ones of a longer context


def bucketed_width(num_rows: int) -> int:
    """The least width of the fixed list 256, 320, 384, 448, 512, 640, .. that holds `num_rows`: at most a fourth more.

    Attention reads a whole width, and every width is captured once: few widths, little waste.
    """
    if num_rows <= MIN_WIDTH:
        return MIN_WIDTH
    step = (1 << (num_rows - 1).bit_length() - 1) // WIDTHS_PER_OCTAVE
    return -(-num_rows // step) * step


class FixedSteps:
    """Steps of one request: the widths that they need, and the host's count of certain tokens.

    `last` holds what the last step left on the device, until the next one.
    """

    last: StepRecord

    def __init__(self, step: DecodingStep) -> None:
        self._step = step
        # One more: the root, which a drafter may count among its certain tokens.
        self._num_rows_behind = max(cache_rows_needed(step.tree_drafter.shape), step.path_length) + 1

    def begin(self, root_id: Tensor, state: Tensor, uniforms: Tensor, seen: Tensor | None) -> None:
        """As `DecodingStep.begin`; the prompt lies in the caches of target and drafter."""
        self._step.target.cache.clear_uncertain()
        self._step.drafter.clear_uncertain()
        self._step.begin(root_id, state, uniforms, seen)

    def step(self) -> StepOutcome:
        """One step. Nothing is counted as certain if the target's logits were not finite."""
        cache = self._step.target.cache
        outcome = StepOutcome.from_list(self._run(bucketed_width(cache.length + self._num_rows_behind)))
        if outcome.bad_node < 0:
            cache.commit(outcome.num_accepted)
            self._step.drafter.commit(outcome.num_accepted)
        return outcome

    def _run(self, width: int) -> list[int]:
        """The step, and its outcome on the host."""
        self.last = self._step.run(width)
        return self._step.outcome.tolist()


class CaptureResources(NamedTuple):
    """What all graphs of a decoder share: memory is reused only between captures of one pool on one stream."""

    pool: Any
    stream: torch.cuda.Stream

    @classmethod
    def of(cls, device: torch.device) -> CaptureResources:
        return cls(torch.cuda.graph_pool_handle(), torch.cuda.Stream(device))


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    last: StepRecord


class StepGraphs(FixedSteps):
    """Steps that replay one CUDA graph per width, captured when a width is needed for the second time.

    The first step of a width runs as it is: that compiles kernels and makes libraries ready, which no capture may do.
    All graphs of one decoder share one pool of memory and one stream of captures, so only the last replay's results are
    there to be read. A graph is dropped when the buffers it was captured over are gone and, from the next request on,
    when weights of target or drafter lie elsewhere or other adapters act on them. A step's outcome comes to the host by
    one asynchronous copy, the only thing that the host waits for.

    Raises RuntimeError, with the reason, where a step cannot be captured.
    """

    def __init__(self, step: DecodingStep, resources: CaptureResources) -> None:
        super().__init__(step)
        self._pool, self._stream = resources
        self._graphs: OrderedDict[int, _Captured | None] = OrderedDict()
        self._captured_over: tuple[tuple[int, torch.Size], ...] = ()
        self._weights: tuple[Hashable, ...] = ()
        self._on_host = torch.empty(step.outcome.shape, dtype=torch.int64, pin_memory=True)
        self._is_there = torch.cuda.Event()

    def begin(self, root_id: Tensor, state: Tensor, uniforms: Tensor, seen: Tensor | None) -> None:
        self._forget_other_weights()
        super().begin(root_id, state, uniforms, seen)

    def _run(self, width: int) -> list[int]:
        with torch.cuda.device(self._step.target.device):  # streams and events without a name are the current device's
            return self._run_there(width)

    def _run_there(self, width: int) -> list[int]:
        self._forget_other_buffers()
        if width not in self._graphs:
            self._make_room()
            self.last = self._run_beside(width)
            self._graphs[width] = None
        else:
            captured = self._graphs[width] or self._capture(width)
            self._graphs[width] = captured
            self._graphs.move_to_end(width)
            captured.graph.replay()
            self.last = captured.last
        self._on_host.copy_(self._step.outcome, non_blocking=True)
        self._is_there.record()
        self._is_there.synchronize()
        return self._on_host.tolist()

    def _run_beside(self, width: int) -> StepRecord:
        """One step on the stream of the captures, where its memory and its libraries' workspaces belong."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            last = self._step.run(width)
        torch.cuda.current_stream().wait_stream(self._stream)
        return last

    def _capture(self, width: int) -> _Captured:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                last = self._step.run(width)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RuntimeError(
                f"the decoding step could not be captured as a CUDA graph; cuda_graph=False decodes without: {error}"
            ) from error
        return _Captured(graph, last)

    def _forget_other_buffers(self) -> None:
        memory = self._step.drafter.memory()
        buffers = (self._step.target.cache.buffer, *memory)
        captured_over = tuple((buffer.data_ptr(), buffer.shape) for buffer in buffers)
        if captured_over != self._captured_over:
            self._graphs.clear()
            self._captured_over = captured_over

    def _forget_other_weights(self) -> None:
        weights = weight_places(self._step.target.model, model_of(self._step.drafter))
        if weights != self._weights:
            self._graphs.clear()
            self._weights = weights

    def _make_room(self) -> None:
        while len(self._graphs) >= MAX_GRAPHS:
            self._graphs.popitem(last=False)
