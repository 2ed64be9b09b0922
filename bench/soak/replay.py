"""The same requests one after the other, each alone in a decoder that has seen nothing else."""

from __future__ import annotations

import hashlib

from bench.soak.plans import Plan
from bench.soak.rounds import Outcome
from nanospec import GenerationResult, SpeculativeDecoder, Target
from nanospec.drafters.drafter import HasOwnCache


class Replay:
    """Runs requests in fresh decoders over the weights of `loaded`, which nothing else must use: what a soak does to
    its own weights shows, too."""

    def __init__(self, loaded: SpeculativeDecoder) -> None:
        self._loaded = loaded

    def generate(self, plan: Plan, policy: str) -> GenerationResult:
        return self._fresh(policy).generate(plan.input_ids, **plan.settings)

    def _fresh(self, policy: str) -> SpeculativeDecoder:
        """A decoder with caches and draft vocabulary of its own."""
        loaded, drafter = self._loaded, self._loaded.drafter
        target = Target(loaded.target.model, None, loaded.target.feature_layers)
        drafter = drafter.with_own_cache() if isinstance(drafter, HasOwnCache) else drafter
        decoder = SpeculativeDecoder(
            target,
            drafter,
            policy,
            loaded.static_tree or loaded.tree,
            loaded.tokenizer,
            loaded.num_top,
            loaded.capacity,
            loaded.frequent_ids,
        )
        decoder.eos_ids = loaded.eos_ids
        return decoder


def digest(result: GenerationResult) -> str:
    """SHA-256 over tokens, text and the reason of the end."""
    return hashlib.sha256(repr((result.token_ids, result.text, result.finish_reason)).encode()).hexdigest()


def difference(outcome: Outcome, replayed: GenerationResult) -> str | None:
    """What is wrong with an outcome, None if nothing is.

    A whole one must be the replayed output, by hash where it has a result, and its pieces joined must be that output;
    of one that left early, what came must be its beginning.
    """
    expected, text = replayed.token_ids, replayed.text or ""
    if not outcome.is_whole:
        if outcome.token_ids != expected[: len(outcome.token_ids)]:
            return _first_difference(outcome.token_ids, expected, "token {} of what came before it left")
        return None if text.startswith(outcome.text) else f"text {outcome.text!r} before it left, alone {text!r}"
    if outcome.result is not None and digest(outcome.result) != digest(replayed):
        if outcome.result.token_ids != expected:
            return _first_difference(outcome.result.token_ids, expected, "token {}")
        ends = [(result.finish_reason, result.text) for result in (outcome.result, replayed)]
        return f"reason and text of the end are {ends[0]}, alone {ends[1]}"
    if outcome.token_ids != expected:
        return _first_difference(outcome.token_ids, expected, "token {} of the pieces")
    return None if outcome.text == text else f"text of the pieces is {outcome.text!r}, alone {text!r}"


def _first_difference(found: list[int], expected: list[int], where: str) -> str:
    place = next(
        (i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]),
        min(len(found), len(expected)),
    )
    got, alone = (repr(ids[place]) if place < len(ids) else "nothing" for ids in (found, expected))
    return f"{where.format(place)} is {got}, alone {alone}"
