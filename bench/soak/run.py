"""The soak itself: rounds through decoders that stay, each replayed right after it, memory sampled between them."""

from __future__ import annotations

import hashlib
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bench.soak.memory import MemorySample, Slope, fit_slopes, take_sample
from bench.soak.plans import Mix, Round
from bench.soak.replay import Replay, difference, digest
from bench.soak.rounds import Outcome, run_alone, run_round
from nanospec import SpeculativeDecoder

MOST_DIFFERENCES = 20  # a report names so many; all are counted


@dataclass
class SoakReport:
    """What a soak found so far.

    counts         requests by what became of them, and "rounds", "tokens", "replayed", "different"
    differences    the first of them, one line each
    output_digest  SHA-256 over all replayed outputs in their order: two runs with the same one decoded the same
    """

    counts: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)
    samples: list[MemorySample] = field(default_factory=list)
    seconds: float = 0.0
    is_complete: bool = False
    outputs: Any = field(default_factory=hashlib.sha256)

    @property
    def slopes(self) -> dict[str, Slope]:
        return fit_slopes(self.samples)

    @property
    def output_digest(self) -> str:
        return self.outputs.hexdigest()

    @property
    def is_good(self) -> bool:
        return not self.counts["different"] and not any(slope.grows for slope in self.slopes.values())


def soak(
    soaked: SpeculativeDecoder,
    spare: SpeculativeDecoder,
    mix: Mix,
    num_requests: int,
    *,
    limit_s: float | None = None,
    sample_every: int = 25,
) -> Iterator[SoakReport]:
    """Runs so many requests of a mix; the report so far after every round. Beyond `limit_s` no other round begins.

    soaked  whose target and drafter all requests share, with a tokenizer
    spare   the same pair loaded again, whose weights replay
    """
    began, report, replay = time.monotonic(), SoakReport(), Replay(spare)
    decoders = {policy: soaked.with_vocab(policy) for policy in mix.policies}
    for decoder in decoders.values():
        decoder.eos_ids = soaked.eos_ids
        run_alone(decoder, mix.longest())  # caches grow now, not when the longest request happens to come
    next_sample = sample_every
    with _traced():
        for plans in mix.rounds(num_requests):
            outcomes = run_round(decoders[plans.policy], plans)
            _count(report, plans, outcomes)
            _compare(report, plans, outcomes, replay, _policy_after(plans.policy, mix.policies))
            del outcomes
            if report.counts["requests"] >= next_sample:
                report.samples.append(take_sample(report.counts["requests"]))
                next_sample = report.counts["requests"] + sample_every
            report.seconds = time.monotonic() - began
            report.is_complete = report.counts["requests"] == num_requests
            yield report
            if limit_s is not None and report.seconds > limit_s:
                return


def _count(report: SoakReport, plans: Round, outcomes: list[Outcome]) -> None:
    counts = report.counts
    counts["rounds"] += 1
    counts["requests"] += len(plans.plans)
    counts["not begun"] += len(plans.plans) - len(outcomes)
    for outcome in outcomes:
        counts["whole" if outcome.is_whole else "left early"] += 1
        counts[f"by {_way(plans, outcome)}"] += 1
        counts["tokens"] += len(outcome.token_ids)


def _compare(report: SoakReport, plans: Round, outcomes: list[Outcome], replay: Replay, policy: str) -> None:
    """Another policy than the soak's: what a policy did to a token would not show in its own."""
    for outcome in sorted(outcomes, key=lambda outcome: outcome.plan.number):
        if not outcome.is_whole and not outcome.token_ids:
            continue  # it left before it began: anything is a continuation of nothing
        replayed = replay.generate(outcome.plan, policy)
        report.counts["replayed"] += 1
        report.outputs.update(digest(replayed).encode())
        problem = difference(outcome, replayed)
        if problem is not None:
            report.counts["different"] += 1
            if len(report.differences) < MOST_DIFFERENCES:
                report.differences.append(f"request {outcome.plan.number} ({_way(plans, outcome)}): {problem}")


def _way(plans: Round, outcome: Outcome) -> str:
    return "generate_many" if plans.is_many else outcome.plan.way


def _policy_after(policy: str, policies: tuple[str, ...]) -> str:
    return policies[(policies.index(policy) + 1) % len(policies)]


@contextmanager
def _traced() -> Iterator[None]:
    """With tracemalloc running, which stays as it was."""
    if tracemalloc.is_tracing():
        yield
        return
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()
