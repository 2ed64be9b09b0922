"""Section (b): every kernel beside torch: time, bytes, share of the measured copy bandwidth.

The head's kernels go through several disjoint sets of ids in one graph, so that no set is still in the cache when its
turn comes again: a decoding step reads the drafter's body between two heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.gpu.random_pair import free_memory, random_head
from bench.gpu.run_context import BenchRun, Figures, Part
from bench.gpu.sizes import PairSize
from bench.gpu.state_kernels import measure_state_kernels
from bench.gpu.timing import Call
from nanospec.ops.blocked_topk import blocked_topk
from nanospec.ops.gathered_linear import gathered_linear
from nanospec.ops.gathered_topk_logprob import gathered_topk_logprob
from nanospec.tree_drafter import best_children

OfSet = Callable[[int], object]


def kernel_parts(run: BenchRun) -> list[Part]:
    heads = [Part(size.name, 20, partial(measure_kernels, size=size)) for size in run.sizes.pairs]
    return [Part("state", 10, measure_state_kernels), *heads]


@torch.inference_mode()
def measure_kernels(run: BenchRun, size: PairSize) -> Figures:
    """{kernel and its rows: {side: figures}} at one target's hidden size and vocabulary."""
    weight = random_head(size.vocab_size, size.hidden_size, run.device, run.dtype)
    figures: Figures = {}
    for num_tokens in (run.sizes.tree.branching, run.sizes.tree.num_nodes):
        x = torch.randn(1, num_tokens, size.hidden_size, device=run.device, dtype=run.dtype)
        figures[f"gathered_linear, {num_tokens} tokens"] = measure_products(run, x, weight)
        figures[f"gathered_topk_logprob, {num_tokens} tokens"] = measure_best(run, x, weight)
    logits = torch.randn(run.sizes.tree.num_nodes, size.vocab_size, device=run.device).to(run.dtype)
    figures[f"top {run.sizes.num_top} of the target's logits"] = measure_topk(run, logits)
    del weight, logits
    free_memory(run.device)
    return figures


def measure_products(run: BenchRun, x: Tensor, weight: Tensor) -> Figures:
    """Logits over K ids, and over all V as the time that is saved."""
    id_sets, row_sets = cold_sets(run, weight)
    num_bytes = product_bytes(x, run.sizes.draft_size, writes_logits=True)
    whole = {"torch, whole head": lambda _: F.linear(x, weight)}
    ways: dict[str, OfSet] = {
        "kernel": lambda turn: gathered_linear(x, weight, id_sets[turn]),
        "W[ids] + cuBLAS": lambda turn: F.linear(x, weight[id_sets[turn][0]]),
        "packed + cuBLAS": lambda turn: F.linear(x, row_sets[turn][0]),
    }
    figures = _per_set(run, ways, len(id_sets), num_bytes)
    return figures | _per_set(run, whole, 1, product_bytes(x, weight.shape[0], writes_logits=True))


def measure_best(run: BenchRun, x: Tensor, weight: Tensor) -> Figures:
    """The best ids with log-probabilities: fused, and as product, log-softmax and top-k one after the other."""
    id_sets, row_sets = cold_sets(run, weight)
    k = run.sizes.tree.branching
    ways: dict[str, OfSet] = {
        "kernel": lambda turn: gathered_topk_logprob(x, weight, id_sets[turn], k),
        "kernel, packed rows": lambda turn: gathered_topk_logprob(x, weight, id_sets[turn], k, rows=row_sets[turn]),
        "gathered_linear + torch": lambda turn: best_children(gathered_linear(x, weight, id_sets[turn]), k),
        "W[ids] + cuBLAS + torch": lambda turn: best_children(F.linear(x, weight[id_sets[turn][0]]), k),
        "packed + cuBLAS + torch": lambda turn: best_children(F.linear(x, row_sets[turn][0]), k),
    }
    return _per_set(run, ways, len(id_sets), product_bytes(x, run.sizes.draft_size, writes_logits=False))


def measure_topk(run: BenchRun, logits: Tensor) -> Figures:
    k = min(run.sizes.num_top, logits.shape[1])
    ways: dict[str, OfSet] = {
        "blocked_topk": lambda _: blocked_topk(logits, k),
        "torch.topk": lambda _: logits.topk(k),
    }
    return _per_set(run, ways, 1, logits.numel() * logits.element_size())


def cold_sets(run: BenchRun, weight: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Disjoint draft_ids int64 [1, K] and their rows [1, K, D], together `cold_bytes` or as many as V allows."""
    draft_size = run.sizes.draft_size
    set_bytes = draft_size * weight.shape[1] * weight.element_size()
    num_sets = max(1, min(-(-run.sizes.cold_bytes // set_bytes), weight.shape[0] // draft_size))
    shuffled = torch.randperm(weight.shape[0], device=weight.device)
    id_sets = [part[None] for part in shuffled[: num_sets * draft_size].split(draft_size)]
    return id_sets, [weight[ids] for ids in id_sets]


def product_bytes(x: Tensor, num_ids: int, writes_logits: bool) -> int:
    """Bytes that a product over `num_ids` rows must move: the rows and x read once, logits written once if at all."""
    num_tokens, hidden_size = x.shape[1:]
    elements = (num_ids + num_tokens) * hidden_size + num_ids * num_tokens * writes_logits
    return elements * x.element_size()


def _per_set(run: BenchRun, ways: Mapping[str, OfSet], num_sets: int, num_bytes: int) -> Figures:
    """Figures of one call of every way, timed over all sets in turn."""

    def over_sets(way: OfSet) -> Call:
        return lambda: [way(turn) for turn in range(num_sets)]

    times = run.time_replays({name: over_sets(way) for name, way in ways.items()})
    return {name: run.with_bandwidth(quartiles.divided_by(num_sets), num_bytes) for name, quartiles in times.items()}
