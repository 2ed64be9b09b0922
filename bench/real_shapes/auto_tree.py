"""tree="auto" for a pair without acceptance of its own: its measured costs, another pair's accepted nodes."""

from __future__ import annotations

from functools import partial

import torch

from bench.gpu.draft_bed import DraftBed
from bench.gpu.timing import time_sides
from bench.real_shapes.pair import CPU, RandomPair, children_over, vocabularies
from bench.real_shapes.sizes import HYBRID, RealSizes
from bench.real_shapes.stages import ONE_CALL, cached
from nanospec.decode import SpeculativeDecoder
from nanospec.planning.device import Device
from nanospec.tree_shape import TreeShape
from nanospec.tree_tuning import StepCosts, flat_tree, tune_tree_shape

ROUNDS = 2


def choose_tree(accepting: SpeculativeDecoder, pair: RandomPair, sizes: RealSizes, device: Device) -> TreeShape:
    """The tree that the decoder's own search picks, as with the hybrid vocabulary, if `pair` accepted as `accepting`
    does."""
    verify: dict[int, float] = {}
    vocab = vocabularies(sizes, pair.target.head_weight)[HYBRID].select()
    overheads = device.overheads

    def measure(_: SpeculativeDecoder, probe: TreeShape, counts: list[int]) -> StepCosts:
        if not verify:
            verify.update(_verify_seconds(pair, sizes))
        bed = DraftBed(pair.drafter, probe, sizes.context_length)
        sides = {HYBRID: partial(bed.draft, children_over(bed, vocab))}
        draft = time_sides(sides, CPU, ROUNDS, ONE_CALL)[HYBRID].median
        other = overheads.vocabulary + overheads.step
        return StepCosts(draft / (probe.depth + 1), other, {count: _between(verify, count) for count in counts})

    return tune_tree_shape(accepting, measure)


@torch.inference_mode()
def _verify_seconds(pair: RandomPair, sizes: RealSizes) -> dict[int, float]:
    cached(pair.target, sizes.context_length, max(sizes.node_counts))
    trees = {str(count): flat_tree(1, count, CPU) for count in sizes.node_counts}
    calls = {name: partial(pair.target.judge, tree, sizes.num_top) for name, tree in trees.items()}
    return {int(name): times.median for name, times in time_sides(calls, CPU, ROUNDS, ONE_CALL).items()}


def _between(measured: dict[int, float], count: int) -> float:
    """Linear between the measured numbers of nodes, as at the nearest beyond them."""
    known = sorted(measured)
    below = max((size for size in known if size <= count), default=known[0])
    above = min((size for size in known if size >= count), default=known[-1])
    share = 0.0 if above == below else (count - below) / (above - below)
    return measured[below] + share * (measured[above] - measured[below])
