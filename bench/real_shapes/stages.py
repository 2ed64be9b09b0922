"""Times of one pair: draft levels, whole drafts, target passes, decoding steps; each beside what was predicted."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from bench.gpu.draft_bed import DraftBed
from bench.gpu.random_pair import random_prompt
from bench.gpu.timing import Quartiles, time_sides
from bench.real_shapes.pair import CPU, RandomPair, children_by_side, rows_of_sides, taking_in, vocabularies
from bench.real_shapes.sizes import HEADLESS, RealSizes
from nanospec.decode import SpeculativeDecoder
from nanospec.planning.device import Device
from nanospec.planning.step_cost import draft_seconds, level_seconds, plain_seconds, step_cost, verify_seconds
from nanospec.target import Target
from nanospec.tree_shape import TreeShape
from nanospec.tree_tuning import flat_tree

LEVEL, DRAFT, TARGET, STEP = "draft level", "whole draft", "target", "step"
VERIFY, PLAIN = "verify", "plain decoding, one token"
STAGE_NAMES = ("draft", "verify", "vocabulary", "other")
ONE_CALL = 1e-9  # of a sample: one call each, a draft takes long enough
LEVELS_S = 0.03  # of a sample of levels
Rows = dict[str, dict[str, Any]]  # side -> times and prediction


def beside(times: Quartiles, predicted_s: float) -> dict[str, Any]:
    """Milliseconds measured and predicted, and how far the prediction is off: its ratio to the median, less 1."""
    lower, median, upper = (round(1e3 * seconds, 4) for seconds in times)
    return {
        "median_ms": median,
        "lower_quartile_ms": lower,
        "upper_quartile_ms": upper,
        "predicted_ms": round(1e3 * predicted_s, 4),
        "error": round(predicted_s / times.median - 1, 4),
    }


@torch.inference_mode()
def measure_drafts(pair: RandomPair, sizes: RealSizes, tree: TreeShape, device: Device) -> dict[str, Rows]:
    """Levels and drafts of every side in turn, through the decoder's own head, search and tree. A level in the
    middle of a draft follows another one, and so does each that is timed."""
    bed = DraftBed(pair.drafter, tree, sizes.context_length)
    sides = children_by_side(bed, vocabularies(sizes, pair.target.head_weight))
    deep = DraftBed(pair.drafter, tree._replace(depth=max(tree.depth, 2)), sizes.context_length)  # has a level to run
    calls = {name: deep.level(side) for name, side in sides.items()}
    levels = time_sides(calls, CPU, sizes.rounds, LEVELS_S, in_a_row=True)
    drafts = time_sides({name: partial(bed.draft, side) for name, side in sides.items()}, CPU, sizes.rounds, ONE_CALL)
    expected = pair.expected_on(device, tree, sizes.context_length)
    rows = rows_of_sides(sizes, pair.target_sizes.num_ids)
    return {
        LEVEL: {name: beside(times, level_seconds(expected, rows[name])) for name, times in levels.items()},
        DRAFT: {name: beside(times, draft_seconds(expected, rows[name])) for name, times in drafts.items()},
    }


@torch.inference_mode()
def measure_target(pair: RandomPair, sizes: RealSizes, tree: TreeShape, device: Device) -> Rows:
    """The target's pass over a tree, and over one token, with its search for the best ids."""
    cached(pair.target, sizes.context_length, tree.num_nodes)
    passes = {VERIFY: (tree.num_nodes, sizes.num_top), PLAIN: (1, 1)}
    calls = {
        name: partial(pair.target.judge, flat_tree(1, num_nodes, CPU), num_top)
        for name, (num_nodes, num_top) in passes.items()
    }
    times = time_sides(calls, CPU, sizes.rounds, ONE_CALL)
    expected = pair.expected_on(device, tree, sizes.context_length)
    # Plain decoding's own loop is no part of this pass.
    predicted = {
        VERIFY: verify_seconds(expected),
        PLAIN: plain_seconds(expected) - device.overheads.step,
    }
    return {name: beside(times[name], predicted[name]) for name in passes}


def cached(target: Target, num_tokens: int, num_nodes: int) -> None:
    """Random keys and values of so many certain tokens, and room for a tree behind them."""
    target.reset(num_tokens + num_nodes)
    target.cache.buffer.normal_()
    target.cache.commit(num_tokens)


def decoders(pair: RandomPair, sizes: RealSizes, tree: TreeShape) -> dict[str, SpeculativeDecoder]:
    """A decoder per side over the same modules, to be used one at a time."""
    vocabs = vocabularies(sizes, pair.target.head_weight)
    return {
        name: SpeculativeDecoder(pair.target, pair.drafter, vocab, tree, num_top=sizes.num_top)
        for name, vocab in vocabs.items()
    }


@torch.inference_mode()
def measure_steps(pair: RandomPair, sizes: RealSizes, tree: TreeShape, device: Device) -> dict[str, Rows]:
    """Whole decoding steps by the decoder's own loop behind a random prompt, every stage of them, all sides in turn."""
    sides = decoders(pair, sizes, tree)
    prompt = random_prompt(pair.size.vocab_size, sizes.context_length, CPU)
    names = list(sides)
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(sizes.step_rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(sample_stages(sides[name], prompt, sizes.num_steps))
    rows = rows_of_sides(sizes, pair.target_sizes.num_ids)
    figures: dict[str, Rows] = {STEP: {}, **{f"step: {stage}": {} for stage in STAGE_NAMES}}
    for name in names:
        taken = sum(sample["tokens"] for sample in samples[name]) / len(samples[name])
        expected = step_cost(taking_in(pair.expected_on(device, tree, sizes.context_length), taken), rows[name])
        for stage in STAGE_NAMES:
            times = Quartiles.of([sample[stage] for sample in samples[name]])
            figures[f"step: {stage}"][name] = beside(times, getattr(expected, stage))
        times = Quartiles.of([sum(sample[stage] for stage in STAGE_NAMES) for sample in samples[name]])
        figures[STEP][name] = beside(times, expected.step)
        figures[STEP][name]["tokens_per_step"] = round(taken, 3)
        figures[STEP][name]["active_rows"] = round(samples[name][-1]["active_rows"], 1)
    return figures


def sample_stages(decoder: SpeculativeDecoder, prompt: Tensor, num_steps: int) -> dict[str, float]:
    """Seconds per step of every stage, tokens per step, active rows; the prompt pass is not in them."""
    most = (num_steps + 2) * (decoder.tree.depth + 1)
    loop, stats = decoder.speculate(prompt, decoder.tree, most)
    for _ in islice(loop.steps(), num_steps + 1):
        pass
    per_step = {stage: stats.seconds[stage] / stats.steps for stage in STAGE_NAMES}
    return {**per_step, "tokens": stats.mean_accept_length, "active_rows": stats.mean_active_vocab}


def rates(steps: Rows, plain: Mapping[str, Any], accept_lengths: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Tokens/s of every side at each accept length, equal for all sides, over plain decoding's."""
    plain_rate = 1e3 / plain["median_ms"]
    table: dict[str, dict[str, Any]] = {}
    for source, tokens in accept_lengths.items():
        table[source] = {"accept_length": tokens, "plain decoding": round(plain_rate, 2)}
        table[source] |= {
            name: round(1e3 * tokens / row["median_ms"], 2) for name, row in steps.items() if name != HEADLESS
        }
    return table
