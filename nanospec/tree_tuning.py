"""tree="auto": measures once what nodes cost and what they bring, and picks the shape with most tokens per second.

A few short generations with a generous tree record where the accepted nodes ranked by draft score. A smaller tree of
the same branching would have kept the best-ranked of these nodes, so one run tells the accept length of every smaller
shape (for a shallow one at least: nodes that the generous tree had no room for count as rejected); a timed pass over n
nodes tells what each costs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from nanospec.drafters.drafter import deepest_tree
from nanospec.one_thread import run_alone
from nanospec.records import DraftTree, Verdict
from nanospec.tree_growers import model_of
from nanospec.tree_layout import ancestor_mask, node_depth
from nanospec.tree_shape import TreeShape
from nanospec.vocab_selector import fewest_rows

if TYPE_CHECKING:
    from nanospec.decode import SpeculativeDecoder

NUM_STEPS = 12  # speculative steps per prompt
NODE_COUNTS = (2, 4, 6, 8, 12, 16, 20, 24, 28, 32, 40, 48, 60)
PROBE_DEPTH = 8
BRANCHINGS = (4, 8)  # and the device's default
REPEATS = 5
PROMPTS = (
    "Explain in simple words how a bicycle stays upright while it moves.",
    "Write a Python function that returns the n-th Fibonacci number, and show how to call it.",
    "A shop sells pens at 3 for 2 dollars. How much do 12 pens cost? Answer step by step.",
)


@dataclass
class AcceptRecorder:
    """Collects, per step, the ranks of the accepted nodes among all nodes at most as deep as each depth limit.

    ranks[step][depth limit - 1] lists the ranks of the accepted nodes down to that depth, 0 for the best node.
    """

    max_depth: int
    ranks: list[list[list[int]]] = field(default_factory=list)

    def __call__(self, tree: DraftTree, verdict: Verdict, num_accepted: int) -> None:
        path = verdict.accepted_pos[0, 1:num_accepted].tolist()
        depth, score = tree.depth[0].tolist(), tree.score[0].tolist()
        step = []
        for limit in range(1, self.max_depth + 1):
            nodes = [node for node in range(1, len(depth)) if depth[node] <= limit]
            order = {node: rank for rank, node in enumerate(sorted(nodes, key=lambda node: (-score[node], node)))}
            step.append([order[node] for node in path if depth[node] <= limit])
        self.ranks.append(step)

    def accept_length(self, depth: int, num_nodes: int) -> float:
        """Mean tokens per pass, bonus token included, of the tree cut to `depth` levels and `num_nodes` nodes."""
        if not self.ranks:
            return 1.0
        return statistics.fmean(1 + sum(rank < num_nodes - 1 for rank in step[depth - 1]) for step in self.ranks)


class StepCosts(NamedTuple):
    """Seconds of one decoding step: per draft level (the drafter's pass over accepted tokens counts as one), beside
    draft and verification, and of a target pass over so many nodes per request."""

    level: float
    other: float
    verify: dict[int, float]


# decoder, probed shape, node counts -> what a step costs
Measure = Callable[["SpeculativeDecoder", TreeShape, list[int]], StepCosts]


@torch.inference_mode()
def tune_tree_shape(decoder: SpeculativeDecoder, measure: Measure | None = None) -> TreeShape:
    """The TreeShape with the largest expected tokens per second for this decoder's modules, vocabulary and device.

    measure: what steps cost where that is not what single requests cost, as in a batch. Accept lengths are the same
    there.
    """
    widest = fewest_rows(decoder.vocab)
    best, best_rate = decoder.tree, 0.0
    most_levels = min(PROBE_DEPTH, deepest_tree(model_of(decoder.drafter)) or PROBE_DEPTH)
    for branching in sorted({*BRANCHINGS, best.branching}):
        if branching > widest:
            continue
        probe = TreeShape(most_levels, branching, 2)
        probe = probe._replace(num_nodes=min(max(NODE_COUNTS), 1 + probe.num_candidates))
        recorder, level_seconds, other_seconds = _record(decoder, probe)
        counts = [count for count in NODE_COUNTS if count <= probe.num_nodes]
        if measure is None:
            verify_seconds = {count: _verify_seconds(decoder, count) for count in counts}
        else:
            level_seconds, other_seconds, verify_seconds = measure(decoder, probe, counts)
        for depth in range(1, most_levels + 1):
            for num_nodes in counts:
                if num_nodes > 1 + TreeShape(depth, branching, 2).num_candidates:
                    continue
                seconds = (depth + 1) * level_seconds + verify_seconds[num_nodes] + other_seconds
                rate = recorder.accept_length(depth, num_nodes) / seconds
                if rate > best_rate:
                    best, best_rate = TreeShape(depth, branching, num_nodes), rate
    return best


def _record(decoder: SpeculativeDecoder, shape: TreeShape) -> tuple[AcceptRecorder, float, float]:
    """Ranks of accepted nodes, seconds per draft level (the drafter's pass over accepted tokens counts as one), and
    seconds per step beside draft and verification."""
    recorder = AcceptRecorder(shape.depth)
    level_seconds, other_seconds = [], []
    for input_ids in probe_prompts(decoder):
        loop, stats = decoder.speculate(input_ids, shape, max_new_tokens=NUM_STEPS * (shape.depth + 1))
        loop.on_verdict = recorder
        loop.fixed_steps = None  # timed stage by stage
        for _ in islice(loop.steps(), NUM_STEPS + 1):
            pass
        if not stats.steps:  # the context window leaves no room for a step
            continue
        level_seconds.append(stats.seconds["draft"] / stats.steps / (shape.depth + 1))
        other_seconds.append((stats.seconds["vocabulary"] + stats.seconds["other"]) / stats.steps)
    return recorder, min(level_seconds, default=0.0), min(other_seconds, default=0.0)


def probe_prompts(decoder: SpeculativeDecoder) -> list[Tensor]:
    if decoder.tokenizer is not None:
        return [decoder.encode(prompt) for prompt in PROMPTS]
    generator = torch.Generator().manual_seed(0)
    target = decoder.target
    return [
        torch.randint(target.vocab_size, (1, 16), generator=generator).to(target.device) for _ in range(len(PROMPTS))
    ]


def _verify_seconds(decoder: SpeculativeDecoder, num_nodes: int) -> float:
    """Best wall time of a greedy request's target pass over `num_nodes` nodes behind the context in the cache."""
    target = decoder.target
    tree = flat_tree(1, num_nodes, target.device)

    def measure() -> float:
        target.cache.grow(target.cache.length + num_nodes)  # another thread may have begun a request meanwhile
        return best_seconds(lambda: target.judge(tree, decoder.num_top, needs_logits=False), target.device)

    return run_alone(measure, target)


def flat_tree(batch_size: int, num_nodes: int, device: torch.device) -> DraftTree:
    """Trees that are a root and its children: what a target pass costs depends on their number alone."""
    parent_pos = torch.zeros(batch_size, num_nodes, dtype=torch.int64, device=device)
    ancestors, score = ancestor_mask(parent_pos, 1), torch.zeros(batch_size, num_nodes, device=device)
    return DraftTree(torch.zeros_like(parent_pos), parent_pos, node_depth(ancestors), score, ancestors)


def best_seconds(target_pass: Callable[[], object], device: torch.device) -> float:
    """Least wall time of several runs; each writes the same uncertain rows of the cache."""
    timings = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        target_pass()
        if device.type == "cuda":
            torch.cuda.synchronize()
        timings.append(time.perf_counter() - began)
    return min(timings)
