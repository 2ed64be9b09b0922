"""Section (d): whole decoding steps of the decoder itself, with and without its CUDA graph.

The only module here that knows how the decoder is driven.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from bench.gpu.random_pair import free_memory, random_drafter, random_prompt, random_target
from bench.gpu.run_context import BenchRun, Figures, Part
from bench.gpu.sizes import PairSize
from bench.gpu.timing import Quartiles, synchronize
from nanospec.decode import SpeculativeDecoder
from nanospec.drafters.eagle import EagleDrafter
from nanospec.stats import STAGES, StageClock
from nanospec.target import Target
from nanospec.tree_shape import TreeShape

VOCABS = ("full", "static", "in-context")
GRAPH, EAGER = "graph on", "graph off"
ACCEPT_LENGTHS = (2.0, 3.0, 4.0, 5.0)  # assumed: random weights accept next to nothing
NUM_WARM_UPS = 2


def step_parts(run: BenchRun) -> list[Part]:
    return [Part(size.name, 75, partial(measure_steps, size=size)) for size in run.sizes.pairs]


def measure_steps(run: BenchRun, size: PairSize) -> Figures:
    """Step time of every draft vocabulary, graph on and off, tokens/s at assumed accept lengths, time per stage."""
    target = random_target(size, run.device, run.dtype)
    drafter = random_drafter(size, target.embed_tokens, target.head_weight)
    decoders = _decoders(run, target, drafter)
    prompt = random_prompt(size.vocab_size, run.sizes.context_length, run.device)
    samples: dict[str, list[float]] = {name: [] for name in decoders}
    tokens: dict[str, list[int]] = {}
    names = list(decoders)
    for name in names:
        for _ in range(NUM_WARM_UPS):
            tokens[name] = sample_steps(decoders[name], prompt, run.sizes.steps_per_sample)[1]
    for turn in range(run.sizes.step_rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(sample_steps(decoders[name], prompt, run.sizes.steps_per_sample)[0])
    figures = {name: _figures(decoders[name], prompt, run, samples[name], tokens) for name in names}
    for name in names:
        figures[name]["equal_leading_tokens"] = _equal_leading(tokens[name], tokens[names[0]])
        figures[name]["num_tokens"] = len(tokens[name])
    del target, drafter, decoders
    free_memory(run.device)
    return figures


def graph_modes(device: torch.device) -> dict[str, bool]:
    """Sides by name; only CUDA has graphs."""
    return {EAGER: False, GRAPH: True} if device.type == "cuda" else {EAGER: False}


def new_decoder(
    target: Target,
    drafter: EagleDrafter,
    vocab: str,
    tree: TreeShape,
    num_top: int,
    capacity: int,
    frequent_ids: Tensor,
    graph: bool,
) -> SpeculativeDecoder:
    """graph: whether a step is one CUDA graph."""
    return SpeculativeDecoder(
        target,
        drafter,
        vocab,
        tree,
        num_top=num_top,
        capacity=capacity,
        frequent_ids=frequent_ids,
        cuda_graph=graph,
    )


def sample_steps(decoder: SpeculativeDecoder, prompt: Tensor, num_steps: int) -> tuple[float, list[int]]:
    """Wall seconds per step behind `prompt` and the tokens that came of it; the prompt pass is not in the time."""
    device = decoder.target.device
    loop, stats = decoder.speculate(prompt, decoder.tree, _enough_tokens(decoder, num_steps))
    loop.clock = _NoClock(stats, device)
    steps = loop.steps()
    tokens = [*next(steps)]
    synchronize(device)
    began = time.perf_counter()
    for emitted in islice(steps, num_steps):
        tokens += emitted
    synchronize(device)
    return (time.perf_counter() - began) / num_steps, tokens


def stage_us(decoder: SpeculativeDecoder, prompt: Tensor, num_steps: int) -> dict[str, float]:
    """Microseconds per step of every stage, the device synchronised after each: their sum exceeds a step's time."""
    loop, stats = decoder.speculate(prompt, decoder.tree, _enough_tokens(decoder, num_steps))
    for _ in islice(loop.steps(), num_steps + 1):
        pass
    return {f"{name}_us": round(stats.seconds[name] / num_steps * 1e6, 1) for name in STAGES if name != "prefill"}


class _NoClock(StageClock):
    """Leaves the device alone between stages."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        yield


def _enough_tokens(decoder: SpeculativeDecoder, num_steps: int) -> int:
    return (num_steps + 1) * (decoder.tree.depth + 1)


def _decoders(run: BenchRun, target: Target, drafter: EagleDrafter) -> dict[str, SpeculativeDecoder]:
    """A decoder per draft vocabulary and graph mode over the same modules, to be used one at a time."""
    sizes = run.sizes
    frequent_ids = torch.randperm(target.vocab_size)[: sizes.static_size]
    decoders = {}
    for spec in VOCABS:
        vocab = f"static:{sizes.static_size}" if spec == "static" else spec
        for name, graph in graph_modes(run.device).items():
            decoders[f"{spec}, {name}"] = new_decoder(
                target, drafter, vocab, sizes.tree, sizes.num_top, sizes.draft_size, frequent_ids, graph
            )
    return decoders


def _figures(
    decoder: SpeculativeDecoder, prompt: Tensor, run: BenchRun, samples: list[float], tokens: dict[str, list[int]]
) -> Figures:
    times = Quartiles.of(samples)
    rates = {f"{length:g}": round(length / times.median, 1) for length in ACCEPT_LENGTHS}
    return {
        **times.as_json(),
        "tokens_per_s_at_assumed_accept_length": rates,
        "stages_synchronised": stage_us(decoder, prompt, run.sizes.steps_per_sample),
    }


def _equal_leading(tokens: list[int], reference: list[int]) -> int:
    """How many tokens are equal before the first that is not."""
    count = 0
    for token, expected in zip(tokens, reference, strict=False):
        if token != expected:
            break
        count += 1
    return count
