"""The tree of a batch: every node that a tree has is a row of work for each of the requests."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import cycle, islice
from typing import TYPE_CHECKING

import torch

from nanospec.decoder_options import TreeArgument, as_tree_shape
from nanospec.drafters.drafter import deepest_tree
from nanospec.kv_cache import CachePlace
from nanospec.static_tree import StaticTree
from nanospec.tree_shape import TreeShape
from nanospec.tree_tuning import StepCosts, best_seconds, flat_tree, probe_prompts, tune_tree_shape
from nanospec.vocab_selector import fewest_rows

if TYPE_CHECKING:
    from nanospec.batch.engine import BatchEngine
    from nanospec.decode import SpeculativeDecoder

MakeEngine = Callable[[TreeShape], "BatchEngine"]
NUM_STEPS = 4  # timed steps of a full batch, after one that warms up
DEFAULT_MAX_BATCH = 8
# Nodes of all trees together in one target pass: beyond, a pass takes as much longer as it has more of them.
CPU_NODES, ACCELERATOR_NODES = 96, 480
FEWEST_NODES, MOST_BRANCHING = 4, 4


def default_batch_tree(tree: TreeShape, max_batch: int, device: torch.device) -> TreeShape:
    """The tree of single requests, cut so that `max_batch` of them have 96 nodes on a CPU, 480 elsewhere, but at least
    4 each; what is cut has at most 4 children per node."""
    num_nodes = (CPU_NODES if device.type == "cpu" else ACCELERATOR_NODES) // max_batch
    if tree.num_nodes <= max(num_nodes, FEWEST_NODES):
        return tree
    num_nodes = max(num_nodes, FEWEST_NODES)
    shape = TreeShape(min(tree.depth, num_nodes - 1), min(tree.branching, MOST_BRANCHING), num_nodes)
    return shape._replace(num_nodes=min(num_nodes, 1 + shape.num_candidates)).validated()


def batch_tree(
    decoder: SpeculativeDecoder, max_batch: int, tree: TreeArgument, engine: MakeEngine
) -> TreeShape | StaticTree:
    """The tree that a batch of `decoder` grows: what is named, its own StaticTree, or `default_batch_tree`; "auto"
    measures with an `engine` for a shape what steps of a full batch cost.

    Raises TypeError or ValueError naming the argument that is wrong.
    """
    if isinstance(max_batch, bool) or not isinstance(max_batch, int):
        raise TypeError(f"max_batch must be an int, got {max_batch!r}")
    if max_batch < 1:
        raise ValueError(f"max_batch must be at least 1, got {max_batch}")
    if tree is None:
        return decoder.static_tree or default_batch_tree(decoder.tree, max_batch, decoder.target.device)
    if tree == "auto":
        shape = tune_tree_shape(decoder, partial(measure_batch, max_batch=max_batch, engine=engine))
        return decoder.target.ranks.agree_on(shape)
    shape, num_rows = as_tree_shape(tree), fewest_rows(decoder.vocab)
    if shape.branching > num_rows:
        raise ValueError(f"tree branching must be at most {num_rows}, the rows of the vocabulary, got {shape}")
    most_levels = deepest_tree(decoder.drafter)
    if most_levels is not None and shape.depth > most_levels:
        raise ValueError(f"tree depth must be at most {most_levels} for this drafter, got {shape}")
    return tree if isinstance(tree, StaticTree) else shape


def measure_batch(
    decoder: SpeculativeDecoder, shape: TreeShape, node_counts: list[int], max_batch: int, engine: MakeEngine
) -> StepCosts:
    """What steps of a full batch cost, as `tree_tuning` asks: requests that all run the probe prompts."""
    batch = engine(shape)
    num_steps, device = 1 + NUM_STEPS, decoder.target.device
    for input_ids in islice(cycle(probe_prompts(decoder)), max_batch):
        batch.submit(input_ids, max_new_tokens=(num_steps + 1) * (shape.depth + 1), ignore_eos=True)
    seconds = []
    for _ in range(num_steps):
        batch.step()
        seconds.append(batch.step_seconds)
    level = min(step["draft"] for step in seconds[1:]) / (shape.depth + 1)
    other = min(step["vocabulary"] + step["other"] for step in seconds[1:])
    place = CachePlace(batch.rows.length, batch.rows.target.cache.capacity)
    verify = {}
    for count in node_counts:
        judge = partial(batch.rows.target.judge, flat_tree(max_batch, count, device), decoder.num_top, place)
        verify[count] = best_seconds(judge, device)
    batch.close()
    return StepCosts(level, other, verify)
