"""The engine of a batch: requests are submitted, stepped together, finished or cancelled, in any order.

A request that ends frees its row at once: the last row's request moves there, so the work is always that of the first
rows, without gaps, and the next request that waits takes the row behind them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from nanospec.batch.row_choice import RowChoice
from nanospec.batch.rows import BatchRows
from nanospec.batch.step import BatchStep
from nanospec.drafters.eagle import EagleDrafter
from nanospec.one_thread import alone
from nanospec.request import Request
from nanospec.result import GenerationResult, OutputCutter, StreamPiece
from nanospec.speculation import WIDTH_MULTIPLE, SpeculativeLoop
from nanospec.static_tree import StaticTree
from nanospec.static_tree_drafter import StaticTreeDrafter
from nanospec.stats import STAGES, GenerationStats, StageClock
from nanospec.step_graphs import bucketed_width
from nanospec.step_outcome import StepOutcome
from nanospec.text_stream import TextStream
from nanospec.token_choice import NonFiniteLogitsError
from nanospec.tree_drafter import TreeDrafter, cache_rows_needed
from nanospec.tree_shape import TreeShape
from nanospec.vocab.reduced import ReducedVocab
from nanospec.vocab.with_prior import PriorVocab

if TYPE_CHECKING:
    from nanospec.decode import SpeculativeDecoder

CLOSED = "the batch engine is closed: make another"
TORN = "the batch engine was torn by an exception within a step: make another"


class BatchPiece(NamedTuple):
    """What one step brought one request.

    handle  of the request
    piece   its new token ids and their text; empty where there is an error
    result  the whole of it, if that was the last piece
    error   why the request ended without a result: the target's logits allow no token
    """

    handle: int
    piece: StreamPiece
    result: GenerationResult | None = None
    error: NonFiniteLogitsError | None = None


@dataclass
class _Running:
    """A request in its row: its loop counts, its cutter ends the output."""

    handle: int
    loop: SpeculativeLoop
    cutter: OutputCutter
    temperature: float

    @property
    def num_certain(self) -> int:
        """Tokens in the caches: prompt and output without the root."""
        return self.loop.request.input_ids.shape[1] + self.loop.num_generated - 1


class BatchEngine:
    """Up to `max_batch` requests of one decoder at a time; made by `SpeculativeDecoder.batch_engine`.

    Every request yields the tokens that it would yield alone. The engine has caches and draft vocabularies of its own:
    its decoder serves other requests meanwhile. It works for one thread at a time: a call from a second one while
    another runs raises RuntimeError, and so does any call after a step that an exception has torn.

    tree             shape of all trees, or a StaticTree
    prepare          what is asked for -> a checked Request, as `SpeculativeDecoder.generate` takes it
    temperature_for  the draft temperature of a request

    Raises NotImplementedError for a drafter that is not EAGLE's and a decoder that compiles; for policies without
    batches what `vocab.batching.for_batch` raises.
    """

    def __init__(
        self,
        decoder: SpeculativeDecoder,
        max_batch: int,
        tree: TreeShape | StaticTree,
        prepare: Callable[..., Request],
        temperature_for: Callable[[Request], float],
    ) -> None:
        drafter = decoder.drafter
        if not isinstance(drafter, EagleDrafter):
            raise NotImplementedError(f"drafter must be EAGLE's in a batch, got {type(drafter).__name__}")
        if decoder.compile:
            raise NotImplementedError(f"compile must be False in a batch, got {decoder.compile!r}")
        self.max_batch, self._prepare, self._temperature_for = max_batch, prepare, temperature_for
        self._num_top, self._tokenizer = decoder.num_top if decoder.vocab.observes else 1, decoder.tokenizer
        self.tree = tree.shape if isinstance(tree, StaticTree) else tree
        self._prompt_target, self._prompt_drafter = decoder.target.for_batch(1), drafter.with_own_cache()
        self._rows = BatchRows(decoder.target, drafter, decoder.vocab, max_batch, self.tree.depth + 1)
        device, rows_drafter = decoder.target.device, self._rows.drafter
        grower: TreeDrafter | StaticTreeDrafter = TreeDrafter(rows_drafter, self.tree)
        if isinstance(tree, StaticTree):
            grower = StaticTreeDrafter(rows_drafter, tree, device)
        self._step_stats = self._new_stats()
        self._step = BatchStep(self._rows, grower, self._num_top, StageClock(self._step_stats, device))
        self._num_rows_behind = max(cache_rows_needed(self.tree), self.tree.depth + 1) + 1
        self._choice: RowChoice | None = None  # made anew, with the temperature, when rows change
        self._temperature: float | Tensor = 1.0
        self._waiting: deque[tuple[int, Request]] = deque()
        self._running: list[_Running] = []
        self._num_submitted = 0
        self._state = "ready"

    @property
    def rows(self) -> BatchRows:
        """What it holds on the device. Raises RuntimeError once it is closed."""
        if self._state == "closed":
            raise RuntimeError(CLOSED)
        return self._rows

    @property
    def step_seconds(self) -> dict[str, float]:
        """Wall time of the last decoding step, by stage."""
        return self._step_stats.seconds

    @property
    def num_running(self) -> int:
        """Requests that hold a row."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for one."""
        return len(self._waiting)

    @alone
    def submit(self, input_ids: Any, **settings: Any) -> int:
        """Queue a request, as of `SpeculativeDecoder.generate`; its handle. The next `step` with a free row begins it.

        Raises what `generate` raises for the request.
        """
        self._check_ready()
        request = self._prepare(input_ids, **settings)
        self._num_submitted += 1
        self._waiting.append((self._num_submitted, request))
        return self._num_submitted

    @alone
    def cancel(self, handle: int) -> None:
        """Drop a request, running or waiting; its row is free at once.

        Raises ValueError for a handle that is neither: never given, finished or cancelled before.
        """
        self._check_ready()
        for row, running in enumerate(self._running):
            if running.handle == handle:
                self._free(row)
                return
        for entry in self._waiting:
            if entry[0] == handle:
                self._waiting.remove(entry)
                return
        raise ValueError(f"handle must be of a request that runs or waits, got {handle!r}")

    @alone
    def close(self) -> None:
        """Drop all requests and all memory; further calls raise RuntimeError."""
        self._waiting.clear()
        self._running.clear()
        self._state = "closed"
        for part in ("_rows", "_step", "_prompt_target", "_prompt_drafter", "_choice"):
            self.__dict__.pop(part, None)

    @torch.inference_mode()
    @alone
    def step(self) -> list[BatchPiece]:
        """Begin what waits, as far as rows are free, then one decoding step of all rows; what it brought, by request.

        A request may come twice: with its first token, and with those of its first step. Empty if there is no work.

        Raises MemoryError, on CUDA torch.OutOfMemoryError, if caches cannot grow for what waits: nothing has changed,
        and the rest goes on once the request is cancelled. Memory that a pass itself lacks tears the engine.
        """
        self._check_ready()
        entering = list(islice(self._waiting, self.max_batch - self.num_running))
        self._reserve([request for _, request in entering])
        self._state = "torn"  # until all of it is done
        pieces = []
        for handle, request in entering:
            self._waiting.popleft()
            pieces.append(self._begin(handle, request))
        if self._running:
            pieces += self._decode()
        self._state = "ready"
        return pieces

    def _reserve(self, entering: list[Request]) -> None:
        """Room in all caches: in the rows' to the end of each request, in those that read prompts for the longest."""
        for request in entering:
            needed = request.input_ids.shape[1] + request.max_new_tokens + self._num_rows_behind
            self._rows.grow(bucketed_width(needed))
        if entering:
            longest = max(request.input_ids.shape[1] for request in entering)
            self._prompt_target.reset(longest)
            self._prompt_drafter.reset(longest)

    def _begin(self, handle: int, request: Request) -> BatchPiece:
        """The prompt of a request, alone, into the first free row; its first token."""
        row, stats = self.num_running, replace(self._new_stats(), lossless=request.sampling.is_lossless)
        clock, drafts = StageClock(stats, self._prompt_target.device), TreeDrafter(self._prompt_drafter, self.tree)
        vocab = self._rows.vocab_of(row)
        loop = SpeculativeLoop(self._prompt_target, drafts, vocab, self._num_top, request, stats, clock)
        try:
            root_id, state = loop.read_prompt(num_behind=0)
        except NonFiniteLogitsError as error:
            return BatchPiece(handle, StreamPiece("", []), error=error)
        with clock.stage("prefill"):
            self._rows.put(row, loop, root_id, state)
        text = None if self._tokenizer is None else TextStream(self._tokenizer, request.stop_strings)
        self._running.append(_Running(handle, loop, OutputCutter(request, text), self._temperature_for(request)))
        self._choice = None
        return self._take_in(row, root_id[0].tolist())

    def _decode(self) -> list[BatchPiece]:
        running = list(self._running)
        width = bucketed_width(max(request.num_certain for request in running) + self._num_rows_behind)
        outcomes = self._run(width).tolist()  # the one transfer to the host
        pieces = []
        # From the last row down: whoever moves into a freed row has been dealt with.
        for row in reversed(range(len(running))):
            request, stats = running[row], running[row].loop.stats
            for stage, seconds in self._step_stats.seconds.items():
                stats.seconds[stage] += seconds
            outcome = StepOutcome.from_list(outcomes[row])
            try:
                request.loop.count(outcome)
            except NonFiniteLogitsError as error:
                self._free(row)
                pieces.append(BatchPiece(request.handle, StreamPiece("", []), error=error))
                continue
            pieces.append(self._take_in(row, outcome.token_ids))
        return pieces[::-1]

    def _run(self, width: int) -> Tensor:
        running = self._running
        if self._choice is None:
            samplings = [request.loop.request.sampling for request in running]
            self._choice = RowChoice.of(samplings, self._prompt_target.device)
            self._temperature = self._draft_temperature()
        most_active = max(request.loop.num_active for request in running)
        vocab_width = max(-(-most_active // WIDTH_MULTIPLE) * WIDTH_MULTIPLE, self.tree.branching)
        self._step_stats.seconds = dict.fromkeys(STAGES, 0.0)
        return self._step.run(len(running), width, vocab_width, self._choice, self._temperature)

    def _draft_temperature(self) -> float | Tensor:
        """Of all rows, float32 [B, 1, 1] where they differ."""
        temperatures = [request.temperature for request in self._running]
        if len(set(temperatures)) == 1:
            return temperatures[0]
        return torch.tensor(temperatures, device=self._prompt_target.device)[:, None, None]

    def _take_in(self, row: int, emitted: list[int]) -> BatchPiece:
        """New token ids of a row; the row is free if they end its request."""
        request = self._running[row]
        piece, reason = request.cutter.piece(emitted), request.cutter.finish_reason
        if reason is None:
            return BatchPiece(request.handle, piece)
        cutter, stats = request.cutter, request.loop.stats
        stats.new_tokens = len(cutter.token_ids)
        vocab = self._rows.vocab_of(row)
        vocab = vocab.policy if isinstance(vocab, PriorVocab) else vocab
        if isinstance(vocab, ReducedVocab):
            stats.observed_ids, stats.unsayable_ids = vocab.count_unsayable()
        self._free(row)
        return BatchPiece(request.handle, piece, GenerationResult(cutter.token_ids, cutter.text, reason, stats))

    def _new_stats(self) -> GenerationStats:
        target, rows = self._prompt_target, self._rows
        dtype = str(target.dtype).removeprefix("torch.")
        return GenerationStats(rows.vocab.name, rows.drafter.name, str(target.device), dtype, self.tree)

    @torch.inference_mode()
    def _free(self, row: int) -> None:
        last = self.num_running - 1
        if row != last:
            self._rows.move(last, row)
            self._running[row] = self._running[last]
            self._running[row].loop.vocab = self._rows.vocab_of(row)
        self._running.pop()
        self._choice = None

    def _check_ready(self) -> None:
        if self._state != "ready":
            raise RuntimeError(CLOSED if self._state == "closed" else TORN)
