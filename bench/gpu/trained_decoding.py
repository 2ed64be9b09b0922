"""Decoding with a trained pair, draft vocabularies in turn: one step behind real contexts, and free text at T = 1."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.gpu.timing import Quartiles, synchronize
from nanospec.decode import SpeculativeDecoder

AUTOREGRESSIVE, FULL = "autoregressive", "full"
NUM_WARM_UPS = 2  # contexts or prompts at the start that are decoded and not counted
MARGIN = 64  # positions of the window that are left free behind a context


@dataclass
class _Side:
    """What was seen of one side: steps on contexts, generations of free text."""

    seconds: list[float] = field(default_factory=list)
    accepted: list[float] = field(default_factory=list)
    active_rows: list[float] = field(default_factory=list)
    new_tokens: int = 0
    num_equal: int = 0


def warm_up(decoders: Mapping[str, SpeculativeDecoder], longest: int) -> None:
    """A few steps at the longest context: caches reach their final size, so that graphs need not be made again."""
    for decoder in decoders.values():
        prompt = torch.zeros(1, longest, dtype=torch.int64, device=decoder.target.device)
        for _ in range(NUM_WARM_UPS):
            _first_step(decoder, prompt)


def measure_contexts(
    decoders: Mapping[str, SpeculativeDecoder], contexts: list[Tensor], end_time: float
) -> dict[str, dict[str, Any]]:
    """The first greedy step behind each of `contexts` int64 [1, n], by every decoder in turn, until `end_time`.

    tokens_per_s: mean accept length over the median step, both of the same steps.
    """
    sides = {name: _Side() for name in decoders}
    for index, context in enumerate(contexts):
        if index > NUM_WARM_UPS and time.monotonic() > end_time:
            break
        for name, decoder in _rotated(decoders, index):
            seconds, num_tokens, active = _first_step(decoder, context.to(decoder.target.device))
            if index >= NUM_WARM_UPS:
                sides[name].seconds.append(seconds)
                sides[name].accepted.append(num_tokens)
                sides[name].active_rows.append(active)
    return {name: _step_figures(side, sides[FULL]) for name, side in sides.items()}


def measure_free_text(
    decoders: Mapping[str, SpeculativeDecoder], prompts: list[Tensor], max_new_tokens: int, end_time: float
) -> dict[str, dict[str, Any]]:
    """Generations at temperature 1 after each of `prompts` int64 [1, n], in turn and beside plain decoding.

    Only decoding is timed, not the prompt pass. With one seed all sides say the same tokens, near-ties of rounding
    aside: `generations_equal_to_autoregressive` counts them.
    """
    sides = {name: _Side() for name in (AUTOREGRESSIVE, *decoders)}
    plain = next(iter(decoders.values()))
    for index, prompt in enumerate(prompts):
        if index > NUM_WARM_UPS and time.monotonic() > end_time:
            break
        settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": 1.0, "seed": index}
        results = {}
        for name, decoder in _rotated({AUTOREGRESSIVE: plain, **decoders}, index):
            generate = decoder.generate_autoregressive if name == AUTOREGRESSIVE else decoder.generate
            synchronize(decoder.target.device)
            began = time.perf_counter()
            results[name] = generate(prompt.to(decoder.target.device), **settings)
            seconds = time.perf_counter() - began - results[name].stats.seconds["prefill"]
            if index >= NUM_WARM_UPS:
                sides[name].seconds.append(seconds)
        if index >= NUM_WARM_UPS:
            for name, result in results.items():
                sides[name].new_tokens += len(result.token_ids) - 1
                sides[name].num_equal += result.token_ids == results[AUTOREGRESSIVE].token_ids
                if result.stats.steps and name != AUTOREGRESSIVE:
                    sides[name].accepted.append(result.stats.mean_accept_length)
                    sides[name].active_rows.append(result.stats.mean_active_vocab)
    return {name: _text_figures(side, sides) for name, side in sides.items()}


def _first_step(decoder: SpeculativeDecoder, context: Tensor) -> tuple[float, int, float]:
    """Wall seconds, tokens and active rows of the first step behind a context."""
    device = decoder.target.device
    loop, stats = decoder.speculate(context, decoder.tree, decoder.tree.depth + 2)
    steps = loop.steps()
    next(steps)
    synchronize(device)
    began = time.perf_counter()
    emitted = next(steps)
    synchronize(device)
    return time.perf_counter() - began, len(emitted), stats.mean_active_vocab


def _rotated(decoders: Mapping[str, SpeculativeDecoder], turn: int) -> list[tuple[str, SpeculativeDecoder]]:
    items = list(decoders.items())
    first = turn % len(items)
    return items[first:] + items[:first]


def _step_figures(side: _Side, full: _Side) -> dict[str, Any]:
    if not side.seconds:
        return {"skipped": "no context fitted into the time"}
    times, accept_length = Quartiles.of(side.seconds), statistics.fmean(side.accepted)
    rate = accept_length / times.median
    full_rate = statistics.fmean(full.accepted) / Quartiles.of(full.seconds).median
    return {
        "contexts": len(side.seconds),
        "accept_length": round(accept_length, 3),
        "active_rows": round(statistics.fmean(side.active_rows), 1),
        "step": times.as_json(),
        "tokens_per_s": round(rate, 1),
        "speed_over_full": round(rate / full_rate, 3),
    }


def _text_figures(side: _Side, sides: Mapping[str, _Side]) -> dict[str, Any]:
    if not side.seconds or not side.new_tokens:
        return {"skipped": "no prompt fitted into the time, or none was answered with more than one token"}
    rates = {name: other.new_tokens / sum(other.seconds) for name, other in sides.items()}
    rate = side.new_tokens / sum(side.seconds)
    return {
        "prompts": len(side.seconds),
        "new_tokens": side.new_tokens,
        "accept_length": round(statistics.fmean(side.accepted), 3) if side.accepted else None,
        "active_rows": round(statistics.fmean(side.active_rows), 1) if side.active_rows else None,
        "tokens_per_s": round(rate, 1),
        "speed_over_full": round(rate / rates[FULL], 3),
        "speed_over_autoregressive": round(rate / rates[AUTOREGRESSIVE], 3),
        "generations_equal_to_autoregressive": side.num_equal,
    }
