"""The kernels of a step's state beside the PyTorch code that they stand for: bound by latency, not by bytes."""

from __future__ import annotations

from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

from bench.gpu.run_context import BenchRun, Figures
from bench.gpu.timing import Call
from nanospec.acceptance import accept_greedy
from nanospec.kv_cache import KVCache
from nanospec.locality_tracker import LocalityTracker
from nanospec.records import DraftTree
from nanospec.tree_layout import tree_layout

KERNEL, TORCH = "kernel", "torch"
# What decides, where it is called, whether a kernel does the work.
DECISIONS = (
    "nanospec.ops.vocabulary_update.has_kernel",
    "nanospec.tree_layout.has_tree_kernel",
    "nanospec.acceptance.has_tree_kernel",
)
INDEX_BYTES = 8


def in_torch(call: Call) -> Call:
    """`call` with these kernels refused. On CUDA only what is captured runs through here, so replays cost nothing."""

    def run() -> object:
        with patch(DECISIONS[0], _never), patch(DECISIONS[1], _never), patch(DECISIONS[2], _never):
            return call()

    return run


@torch.inference_mode()
def measure_state_kernels(run: BenchRun) -> Figures:
    """{kernel: {side: figures}} at the first target's vocabulary and cache."""
    return {
        "vocabulary_update": _measure_update(run),
        "tree_layout": _measure_layout(run),
        "accept_greedy": _measure_accept(run),
        "compact, all layers": _measure_compact(run),
    }


def _measure_update(run: BenchRun) -> Figures:
    """Ids of one step: every node and the suggestions after it, mostly seen before."""
    vocab_size, capacity = run.sizes.pairs[0].vocab_size, run.sizes.draft_size
    num_ids = run.sizes.tree.num_nodes * (1 + run.sizes.num_top)
    shares = torch.rand(run.sizes.num_updates, 1, num_ids, device=run.device).square()
    pool = list((shares * (vocab_size // 4)).long())

    def updates() -> Call:
        tracker = LocalityTracker(vocab_size, capacity, device=run.device)
        tracker.observe(torch.randperm(vocab_size, device=run.device)[None, :capacity])
        return partial(_observe_all, tracker, pool)

    slots = 2 * INDEX_BYTES * capacity  # id and time of every slot, read once
    per_id = INDEX_BYTES + 2 * (4 + INDEX_BYTES)  # the id; its slot and time, read and written
    return _both(run, updates(), updates(), len(pool), slots + per_id * num_ids)


def _measure_layout(run: BenchRun) -> Figures:
    parent_pos = _chains(run)
    call = partial(tree_layout, parent_pos, run.sizes.tree.depth)
    num_nodes = run.sizes.tree.num_nodes
    return _both(run, call, call, 1, num_nodes * (num_nodes + 2 * INDEX_BYTES))


def _measure_accept(run: BenchRun) -> Figures:
    parent_pos, depth = _chains(run), run.sizes.tree.depth
    ancestors, node_depths = tree_layout(parent_pos, depth)
    token_ids = torch.arange(parent_pos.shape[1], device=run.device)[None]
    tree = DraftTree(token_ids, parent_pos, node_depths, token_ids.float(), ancestors)
    call = partial(accept_greedy, tree, token_ids + run.sizes.tree.branching, depth)
    num_nodes = run.sizes.tree.num_nodes
    return _both(run, call, call, 1, num_nodes * (num_nodes + 4 * INDEX_BYTES))


def _measure_compact(run: BenchRun) -> Figures:
    """All layers in two launches, against one such pair per layer."""
    size, depth, length = run.sizes.pairs[0], run.sizes.tree.depth, run.sizes.context_length
    cache = KVCache(size.num_layers, size.num_kv_heads, size.head_dim, run.dtype, run.device)
    cache.reset(length + run.sizes.tree.num_nodes)
    accepted_pos = torch.arange(depth + 1, device=run.device)
    certain, places = torch.full((1,), length, device=run.device), torch.arange(depth + 1, device=run.device)

    def layer_by_layer() -> None:
        for layer in cache.buffer:
            layer.index_copy_(3, certain + places, layer.index_select(3, certain + accepted_pos))

    moved = 2 * cache.buffer[..., : depth + 1, :].numel() * cache.buffer.element_size()
    return _both(run, partial(cache.compact_behind, certain, accepted_pos), layer_by_layer, 1, moved)


def _observe_all(tracker: LocalityTracker, pool: list[Tensor]) -> None:
    for ids in pool:
        tracker.observe(ids)


def _chains(run: BenchRun) -> Tensor:
    """parent_pos int64 [1, T] of a tree whose root has `branching` children, each the start of a chain.

    Node n with n <= branching hangs from the root, any other from node n - branching, down to `depth`.
    """
    width, depth, num_nodes = run.sizes.tree.branching, run.sizes.tree.depth, run.sizes.tree.num_nodes
    parents = torch.arange(num_nodes) - width
    deepest = 1 + width * depth  # the first node that would be too deep hangs from the root as well
    parents[deepest:] = 0
    return parents.clamp(min=0)[None].to(run.device)


def _both(run: BenchRun, kernel: Call, torch_code: Call, num_calls: int, num_bytes: int) -> Figures:
    times = run.time_replays({KERNEL: kernel, TORCH: in_torch(torch_code)})
    figures: Figures = {}
    for name, quartiles in times.items():
        figures[name] = run.with_bandwidth(quartiles.divided_by(num_calls), num_bytes)
    return figures


def _never(*_: object) -> bool:
    return False
