"""The numbers of this machine's CPU, measured in under 20 seconds: products, attention, searches, and what calls cost.

Nothing of the pair that is planned is run. Products are timed over matrices of one shape, in loops that fit into a
cache and in loops that do not, and over small ones; overheads are those of a decoder so small that nothing else takes
time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from nanospec.cli.machine import cpu_model
from nanospec.decode import SpeculativeDecoder
from nanospec.drafters.eagle import EagleDrafter, EagleShape
from nanospec.gathered_head import GatheredHead
from nanospec.ops.blocked_topk import blocked_topk
from nanospec.ops.gathered_linear import gathered_linear, rows_linear
from nanospec.planning.device import Device, Overheads, RowCurve
from nanospec.planning.model_sizes import BYTES_PER_WEIGHT
from nanospec.target import Target
from nanospec.tree_drafter import best_children, sharpen
from nanospec.tree_shape import TreeShape

DTYPE = torch.bfloat16


class Effort(NamedTuple):
    """How much is measured.

    matrix, small_matrix    outputs and inputs of the products; footprints: bytes of the loops over them
    cached_tokens, columns  of attention and searches
    overhead_steps          decoding steps of the small decoder
    """

    matrix: tuple[int, int] = (4096, 2048)
    small_matrix: tuple[int, int] = (1024, 1024)
    footprints: tuple[float, ...] = (17e6, 134e6, 805e6)
    num_rows: tuple[int, ...] = (1, 4, 8, 32, 64, 128)
    cached_tokens: int = 1024
    columns: tuple[int, int, int] = (256, 4096, 65_536)
    gathered_rows: int = 2048
    overhead_steps: int = 24
    sample_s: float = 0.25


SMALL_EFFORT = Effort((64, 64), (32, 32), (16e3, 64e3), (1, 8), 16, (32, 64, 512), 32, 2, 1e-3)  # for trying it out


@torch.inference_mode()
def measure_cpu(effort: Effort | None = None) -> Device:
    """This machine's CPU, with as many threads as torch uses now."""
    effort = effort or Effort()
    narrow, wide, best = _logit_seconds(effort)
    weights = _weight_curves(effort)
    return Device(
        name="measured",
        source=f"this machine: {cpu_model()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        weights=weights,
        product_s=_product_seconds(effort, weights),
        attention=_attention_curve(effort),
        bytes_per_s=_copy_rate(effort),
        gather_s=_gather_seconds(effort),
        narrow_logit_s=narrow,
        wide_logit_s=wide,
        best_logit_s=best,
        activation_s=_activation_seconds(effort),
        overheads=_overheads(effort.overhead_steps),
    )


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


def _weight_curves(effort: Effort) -> tuple[tuple[float, RowCurve], ...]:
    """By footprint; a loop over more bytes is never faster than one over fewer."""
    outputs, inputs = effort.matrix
    matrix_bytes = outputs * inputs * BYTES_PER_WEIGHT
    pool = torch.empty(round(max(effort.footprints) / matrix_bytes), outputs, inputs, dtype=DTYPE).fill_(0.01)
    slowest = dict.fromkeys(effort.num_rows, 0.0)
    curves = []
    for footprint in effort.footprints:
        matrices = pool[: max(1, round(footprint / matrix_bytes))].unbind()
        for num_rows in effort.num_rows:
            states = torch.full((num_rows, inputs), 0.01, dtype=DTYPE)
            seconds = _seconds(partial(_multiply, states, matrices), effort.sample_s)
            per_byte = seconds / (len(matrices) * matrix_bytes)
            slowest[num_rows] = max(slowest[num_rows], per_byte)
        curves.append((footprint, RowCurve.of(list(slowest.items()))))
    return tuple(curves)


def _product_seconds(effort: Effort, weights: tuple[tuple[float, RowCurve], ...]) -> float:
    """What small matrices take beyond their bytes at the rate of large ones, and beyond a call: that is an overhead."""
    (outputs, inputs), num_rows = effort.small_matrix, 8
    footprint, curve = weights[-1]
    matrix_bytes = outputs * inputs * BYTES_PER_WEIGHT
    pool = torch.empty(round(footprint / matrix_bytes), outputs, inputs, dtype=DTYPE).fill_(0.01)
    states, tiny = torch.full((num_rows, inputs), 0.01, dtype=DTYPE), torch.full((32, 32), 0.01, dtype=DTYPE)
    seconds = _seconds(partial(_multiply, states, pool.unbind()), effort.sample_s) / pool.shape[0]
    call = _seconds(partial(_multiply, tiny[:num_rows], (tiny,) * 100), effort.sample_s / 4) / 100
    return max(seconds - matrix_bytes * curve.seconds(num_rows) - call, 0.0)


def _multiply(states: Tensor, matrices: tuple[Tensor, ...]) -> None:
    for matrix in matrices:
        F.linear(states, matrix)


def _copy_rate(effort: Effort) -> float:
    """Bytes per second that a large copy reads, as many again being written."""
    source = torch.zeros(round(max(effort.footprints) / 4), dtype=torch.uint8)
    goal = torch.zeros_like(source)
    return source.numel() / _seconds(lambda: goal.copy_(source), effort.sample_s)


def _attention_curve(effort: Effort) -> RowCurve:
    """Of eight heads whose keys and values four queries share each, copied for each of them as transformers does."""
    num_tokens, groups = effort.cached_tokens, 4
    keys, values = torch.full((2, 1, 8, num_tokens, 64), 0.1, dtype=DTYPE)
    width = 8 * groups * 64

    def attend(query: Tensor, mask: Tensor) -> None:
        each_key, each_value = (
            part[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2) for part in (keys, values)
        )
        F.scaled_dot_product_attention(query, each_key, each_value, mask)

    points = []
    for num_rows in effort.num_rows:
        query = torch.full((1, 8 * groups, num_rows, 64), 0.1, dtype=DTYPE)
        mask = torch.zeros(1, 1, num_rows, num_tokens, dtype=DTYPE)
        seconds = _seconds(partial(attend, query, mask), effort.sample_s / 4)
        points.append((num_rows, seconds / (num_tokens * width)))
    return RowCurve.of(points)


def _logit_seconds(effort: Effort) -> tuple[float, float, float]:
    """Per logit: of best children below and from the width of the search by blocks, and of a target's best ids."""
    few, some, many = effort.columns
    num_nodes, branching, num_top = 8, 8, min(16, few)

    def children(columns: int) -> float:
        logits = torch.randn(1, num_nodes, columns).to(DTYPE)
        return _seconds(lambda: best_children(sharpen(logits, 0.5), branching), effort.sample_s / 4)

    least = children(few)
    narrow = (children(some) - least) / (num_nodes * (some - few))
    wide = (children(many) - least) / (num_nodes * (many - few))
    logits = torch.randn(32, many).to(DTYPE)
    best = _seconds(lambda: blocked_topk(logits, num_top), effort.sample_s / 4) / logits.numel()
    return max(narrow, 1e-12), max(wide, 1e-12), best


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


def _overheads(num_steps: int) -> Overheads:
    """Of a decoder in which nothing else takes time, with few layers and levels and with more: the difference is a
    layer's, or a level's."""
    (layers, depth), (more_layers, deeper) = (2, 2), (6, 6)
    few = _stage_seconds(layers, TreeShape(depth, 8, 32), num_steps)
    many = _stage_seconds(more_layers, TreeShape(deeper, 8, 32), num_steps)
    layer = max(many["verify"] - few["verify"], 0.0) / (more_layers - layers)
    level = max(many["draft"] - few["draft"], 0.0) / (deeper - depth)
    return Overheads(
        target_layer=layer,
        target_pass=max(few["verify"] - layers * layer, 0.0),
        level=level,
        draft=max(few["draft"] - depth * level, 0.0),
        vocabulary=(few["vocabulary"] + many["vocabulary"]) / 2,
        step=(few["other"] + many["other"]) / 2,
    )


def _stage_seconds(num_layers: int, tree: TreeShape, num_steps: int) -> dict[str, float]:
    """Seconds per step of every stage: the median of three requests, after one that warms up."""
    decoder = small_decoder(num_layers, tree)
    prompt = torch.arange(16)[None]
    runs = []
    for _ in range(4):
        loop, stats = decoder.speculate(prompt, tree, max_new_tokens=(num_steps + 1) * (tree.depth + 1))
        for _ in islice(loop.steps(), num_steps + 1):
            pass
        runs.append({name: seconds / stats.steps for name, seconds in stats.seconds.items()})
    return {name: statistics.median(run[name] for run in runs[1:]) for name in runs[0]}


def small_decoder(num_layers: int, tree: TreeShape) -> SpeculativeDecoder:
    """Of random weights, 32 numbers wide, over 512 ids."""
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=2048,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).to(DTYPE)
        target = Target(model.requires_grad_(False))
        shape = EagleShape(32, 32, 2, 1, 16, 1, 1e-5, "silu", fc_bias=False, qkv_bias=False)
        drafter = EagleDrafter(shape, config, target.embed_tokens, GatheredHead(target.head_weight)).to(DTYPE)
        for parameter in drafter.parameters():
            nn.init.normal_(parameter, std=0.1)
    return SpeculativeDecoder(target, drafter.eval().requires_grad_(False), "in-context", tree, capacity=256)
