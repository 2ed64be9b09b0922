"""The numbers of this machine's CPU, measured in about 20 seconds: products, attention, searches, and what calls cost.

Nothing of the pair that is planned is run. Products are timed over matrices of one shape, in loops that fit into a
cache and in loops that do not, with many inputs and with few; overheads are those of a decoder so small that nothing
else takes time. Between the other operations of a layer products take longer than in a loop of their own; how much,
two decoders of middling sizes show.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from nanospec.cli.machine import cpu_model
from nanospec.ops.blocked_topk import blocked_topk
from nanospec.ops.gathered_linear import gathered_linear, rows_linear
from nanospec.ops.weight_first import reads_weight_first, weight_first_linear
from nanospec.planning.device import Device, LoopRates, RowCurve
from nanospec.planning.model_sizes import BYTES_PER_WEIGHT
from nanospec.planning.random_decoder import DTYPE, DecoderSizes, measure_layer_factor, measure_overheads
from nanospec.tree_drafter import best_children, sharpen

NUM_NODES = 8  # of a level, for what is measured at one number of rows
LARGEST_KEPT = 30_000_000  # bytes; glibc learns from blocks below 32 MiB


class Effort(NamedTuple):
    """How much is measured.

    matrix, short_inputs    outputs and inputs of the products; inputs of a matrix with as many outputs
    footprints              bytes of the loops over them
    cached_tokens, columns  of attention and searches
    overhead_steps          decoding steps of the small decoder
    decoders, decoder_steps what shows how long products take within layers: sizes, and steps of each
    """

    matrix: tuple[int, int] = (4096, 2048)
    short_inputs: int = 512
    footprints: tuple[float, ...] = (17e6, 68e6, 101e6, 135e6, 806e6)
    num_rows: tuple[int, ...] = (1, 4, 8, 32, 64, 128)
    cached_tokens: int = 1024
    columns: tuple[int, int, int] = (256, 4096, 65_536)
    gathered_rows: int = 2048
    overhead_steps: int = 24
    decoders: tuple[DecoderSizes, ...] = (
        DecoderSizes(1024, 3072, 12, 16, 64, 65_536),
        DecoderSizes(2048, 8192, 6, 16, 128, 65_536),
    )
    decoder_steps: int = 6
    sample_s: float = 0.2


SMALL_EFFORT = Effort(  # for trying it out
    (64, 64), 16, (16e3, 64e3), (1, 8), 16, (32, 64, 512), 32, 2, (DecoderSizes(64, 64, 2, 2, 16, 512),), 2, 1e-3
)


@torch.inference_mode()
def measure_cpu(effort: Effort | None = None) -> Device:
    """This machine's CPU, with as many threads as torch uses now."""
    effort = effort or Effort()
    narrow, wide, best = _logit_seconds(effort)
    device = Device(
        name="measured",
        source=f"this machine: {cpu_model()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        weights=_loop_rates(effort),
        attention=_attention_curve(effort),
        bytes_per_s=_copy_rate(effort),
        gather_s=_gather_seconds(effort),
        narrow_logit_s=narrow,
        wide_logit_s=wide,
        best_logit_s=best,
        activation_s=_activation_seconds(effort),
        overheads=measure_overheads(effort.overhead_steps),
    )
    factors = [measure_layer_factor(device, sizes, effort.decoder_steps) for sizes in effort.decoders]
    return replace(device, layer_factor=statistics.mean(factors))


def _seconds(call: Callable[[], object], sample_s: float) -> float:
    """Median of runs that take about `sample_s` together, at least three, after one that is not counted."""
    call()
    timings: list[float] = []
    began = time.perf_counter()
    while len(timings) < 3 or (time.perf_counter() - began < sample_s and len(timings) < 1000):
        start = time.perf_counter()
        call()
        timings.append(time.perf_counter() - start)
    return statistics.median(timings)


def _loop_rates(effort: Effort) -> tuple[LoopRates, ...]:
    """Per footprint: two matrices with as many outputs, one with fewer inputs, tell bytes from outputs. A loop over
    more bytes is never faster than one over fewer."""
    outputs, inputs = effort.matrix
    pool = torch.empty(round(max(effort.footprints) / BYTES_PER_WEIGHT), dtype=DTYPE).fill_(0.01)

    def product_seconds(inputs: int, num_rows: int, footprint: float) -> float:
        """Of one product, in a loop over so many bytes of such matrices."""
        num_matrices = max(1, int(footprint / (outputs * inputs * BYTES_PER_WEIGHT)))
        matrices = pool[: num_matrices * outputs * inputs].view(num_matrices, outputs, inputs).unbind()
        states = torch.full((num_rows, inputs), 0.01, dtype=DTYPE)
        return _seconds(partial(_multiply, states, matrices), effort.sample_s) / num_matrices

    num_bytes, fewer_bytes = (outputs * size * BYTES_PER_WEIGHT for size in (inputs, effort.short_inputs))
    slowest, output_s = dict.fromkeys(effort.num_rows, 0.0), 0.0
    rates = []
    for footprint in effort.footprints:
        long = {num_rows: product_seconds(inputs, num_rows, footprint) for num_rows in effort.num_rows}
        short = product_seconds(effort.short_inputs, NUM_NODES, footprint)
        byte_s = max(long[NUM_NODES] - short, 0.0) / (num_bytes - fewer_bytes)
        output_s = max(output_s, (short - fewer_bytes * byte_s) / outputs)
        for num_rows, seconds in long.items():
            slowest[num_rows] = max(slowest[num_rows], (seconds - outputs * output_s) / num_bytes, 1e-15)
        rates.append(LoopRates(footprint, RowCurve.of(list(slowest.items())), output_s))
    return tuple(rates)


def _multiply(states: Tensor, matrices: tuple[Tensor, ...]) -> None:
    for matrix in matrices:
        weight_first_linear(states, matrix, as_it_lies=True)  # what layers do with it, their factor tells


def _copy_rate(effort: Effort) -> float:
    """Bytes per second that a large copy reads, as many again being written."""
    source = torch.zeros(round(max(effort.footprints) / 4), dtype=torch.uint8)
    goal = torch.zeros_like(source)
    return source.numel() / _seconds(lambda: goal.copy_(source), effort.sample_s)


def _attention_curve(effort: Effort) -> RowCurve:
    """Of eight heads whose keys and values four queries share each, copied for each of them as transformers does. Every
    layer reads a cache of its own."""
    num_tokens, num_layers, groups = effort.cached_tokens, 24, 4
    caches = torch.full((num_layers, 2, 1, 8, num_tokens, 64), 0.1, dtype=DTYPE)
    width = 8 * groups * 64

    def attend(query: Tensor, mask: Tensor) -> None:
        for cache in caches:
            keys, values = (part[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2) for part in cache)
            F.scaled_dot_product_attention(query, keys, values, mask)

    points = []
    for num_rows in effort.num_rows:
        query = torch.full((1, 8 * groups, num_rows, 64), 0.1, dtype=DTYPE)
        mask = torch.zeros(1, 1, num_rows, num_tokens, dtype=DTYPE)
        seconds = _seconds(partial(attend, query, mask), effort.sample_s)
        points.append((num_rows, seconds / (num_layers * num_tokens * width)))
    return RowCurve.of(points)


def _logit_seconds(effort: Effort) -> tuple[float, float, float]:
    """Per logit: of best children below and from the width of the search by blocks, and of a target's best ids. They
    come behind products, which leave little else in a cache."""
    few, some, many = effort.columns
    num_nodes, branching, num_top = NUM_NODES, 8, min(16, few)
    matrix, states = torch.full(effort.matrix, 0.01, dtype=DTYPE), torch.full((1, effort.matrix[1]), 0.01, dtype=DTYPE)
    _keep_freed_memory()

    def behind_a_product(search: Callable[[Tensor], object], columns: int, by_column: bool = False) -> float:
        logits = torch.randn(1, num_nodes, columns).to(DTYPE)
        if by_column:
            logits = logits.mT.contiguous().mT
        return _seconds(lambda: (weight_first_linear(states, matrix), search(logits)), effort.sample_s)

    def children(logits: Tensor) -> object:
        return best_children(sharpen(logits, 0.5), branching)

    is_by_column = reads_weight_first(states)  # as a draft head leaves them
    least, more, most = (behind_a_product(children, columns, is_by_column) for columns in effort.columns)
    narrow, wide = (more - least) / (num_nodes * (some - few)), (most - least) / (num_nodes * (many - few))
    least, most = (
        behind_a_product(lambda logits: blocked_topk(logits[0], num_top), columns) for columns in (few, many)
    )
    best = (most - least) / (num_nodes * (many - few))
    return max(narrow, 1e-12), max(wide, 1e-12), max(best, 1e-12)


def _keep_freed_memory() -> None:
    """The C library gives large freed blocks back to the system, and takes page by page again what the next call asks
    for, until it has seen a large block come and go. A decoder's prompt pass is that block."""
    torch.empty(LARGEST_KEPT, dtype=torch.uint8).fill_(0)


def _gather_seconds(effort: Effort) -> float:
    """Per byte of rows that are picked before they are multiplied, beyond the product."""
    inputs, num_ids = effort.matrix[1], effort.gathered_rows
    weight = torch.full((4 * num_ids, inputs), 0.01, dtype=DTYPE)
    ids = torch.randperm(4 * num_ids)[None, :num_ids]
    states, rows = torch.full((1, 8, inputs), 0.01, dtype=DTYPE), weight[ids[0]][None]
    picked = _seconds(lambda: gathered_linear(states, weight, ids), effort.sample_s / 2)
    packed = _seconds(lambda: rows_linear(states, rows), effort.sample_s / 2)
    return max(picked - packed, 0.0) / (num_ids * inputs * BYTES_PER_WEIGHT)


def _activation_seconds(effort: Effort) -> float:
    """Per number that element-wise operations write: a norm, as transformers computes it, and a gated activation."""
    num_rows, width = 32, effort.matrix[0]
    norm = LlamaRMSNorm(width).to(DTYPE)
    few, many = (torch.ones(num, width, dtype=DTYPE) for num in (1, num_rows))

    def work(hidden: Tensor) -> None:
        norm(hidden)
        torch.mul(F.silu(hidden), hidden)

    seconds = _seconds(partial(work, many), effort.sample_s / 4) - _seconds(partial(work, few), effort.sample_s / 4)
    return max(seconds, 1e-9) / ((num_rows - 1) * width * 9)
