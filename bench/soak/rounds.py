"""One round: requests through an engine, others through the same decoder between its steps, some of them left early."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bench.soak.plans import Plan, Round
from nanospec import GenerationResult, SpeculativeDecoder
from nanospec.batch.engine import BatchEngine
from nanospec.result import StreamPiece


@dataclass
class Outcome:
    """What a request brought: piece by piece, and its result where it ran to its end and there is one."""

    plan: Plan
    is_whole: bool = False
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    num_pieces: int = 0
    result: GenerationResult | None = None

    def take(self, piece: StreamPiece) -> None:
        self.token_ids += piece.token_ids
        self.text += piece.text
        self.num_pieces += 1

    @property
    def has_stayed_long_enough(self) -> bool:
        return self.plan.leaves_after is not None and self.num_pieces >= self.plan.leaves_after


def run_round(decoder: SpeculativeDecoder, plans: Round) -> list[Outcome]:
    """The outcomes of all its requests, in no order. Raises what the decoder raises."""
    if plans.is_many:
        return _run_many(decoder, plans)
    company = _Company(decoder.batch_engine(plans.max_batch))
    for place, plan in enumerate(plans.plans):
        if plans.ends_after == place:
            break
        if plan.way == "batch":
            company.submit(plan)
        else:
            company.outcomes.append(run_alone(decoder, plan))
        for _ in range(plan.num_steps):
            company.step()
    if plans.ends_after is None:
        company.drain()
    company.close()
    return company.outcomes


def run_alone(decoder: SpeculativeDecoder, plan: Plan) -> Outcome:
    """A request of one sequence, whole or as a stream that may be closed early."""
    outcome = Outcome(plan)
    if plan.way != "stream":
        outcome.result = decoder.generate(plan.input_ids, **plan.settings)
        outcome.take(StreamPiece(outcome.result.text or "", outcome.result.token_ids))
        outcome.is_whole = True
        return outcome
    stream = decoder.stream(plan.input_ids, **plan.settings)
    for piece in stream:
        outcome.take(piece)
        if outcome.has_stayed_long_enough:
            return outcome  # the stream is dropped where it is
    outcome.is_whole = True
    return outcome


def _run_many(decoder: SpeculativeDecoder, plans: Round) -> list[Outcome]:
    requests: list[dict[str, Any]] = [{"input_ids": plan.input_ids, **plan.settings} for plan in plans.plans]
    outcomes: list[Outcome] = []
    results = decoder.generate_many(requests, plans.max_batch)
    for place, result in results:
        outcomes.append(Outcome(plans.plans[place], is_whole=True, result=result))
        outcomes[-1].take(StreamPiece(result.text or "", result.token_ids))
        if len(outcomes) == plans.ends_after:
            break
    return outcomes


class _Company:
    """The requests of a round that are in its engine."""

    def __init__(self, engine: BatchEngine) -> None:
        self.engine = engine
        self.live: dict[int, Outcome] = {}
        self.outcomes: list[Outcome] = []

    def submit(self, plan: Plan) -> None:
        handle = self.engine.submit(plan.input_ids, **plan.settings)
        self.live[handle] = Outcome(plan)
        self._cancel_who_leaves()

    def step(self) -> None:
        for piece in self.engine.step():
            if piece.error is not None:
                raise piece.error
            outcome = self.live[piece.handle]
            outcome.take(piece.piece)
            if piece.result is not None:
                outcome.result, outcome.is_whole = piece.result, True
                self.outcomes.append(self.live.pop(piece.handle))
        self._cancel_who_leaves()

    def drain(self) -> None:
        while self.live:
            self.step()

    def close(self) -> None:
        """What is still live has its pieces so far."""
        self.engine.close()
        self.outcomes += self.live.values()
        self.live = {}

    def _cancel_who_leaves(self) -> None:
        for handle in [handle for handle, outcome in self.live.items() if outcome.has_stayed_long_enough]:
            self.engine.cancel(handle)
            self.outcomes.append(self.live.pop(handle))
