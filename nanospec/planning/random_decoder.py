"""Decoders of random weights, run for what a plan cannot tell from single operations."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import NamedTuple, TypeVar

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.initialization import no_init_weights

from nanospec.checkpoints.detect import Family
from nanospec.decode import SpeculativeDecoder
from nanospec.drafters.eagle import EagleDrafter, EagleShape
from nanospec.gathered_head import GatheredHead
from nanospec.ops.weight_first import use_weight_first
from nanospec.planning.device import Device, Overheads
from nanospec.planning.read_sizes import eagle_sizes, model_sizes
from nanospec.planning.step_cost import DraftRows, Pair, Setting, step_cost
from nanospec.target import Target
from nanospec.tree_shape import TreeShape

M = TypeVar("M", bound=nn.Module)
DTYPE = torch.bfloat16
TILE = 2**20 + 1  # odd: rows of a matrix differ
WARM_UP, NUM_REQUESTS = 1, 4
PROMPT_LENGTH = 16
STAGES = ("draft", "verify", "vocabulary", "other")


class DecoderSizes(NamedTuple):
    """Of a target, whose draft has one of its layers. Four queries share a key."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    head_dim: int
    num_ids: int
    tree: TreeShape = TreeShape(6, 8, 16)

    @property
    def num_kv_heads(self) -> int:
        return max(1, self.num_heads // 4)


SMALL = DecoderSizes(32, 32, 2, 2, 16, 512)  # takes no time for its size


def random_decoder(sizes: DecoderSizes) -> SpeculativeDecoder:
    """Of random weights, with the vocabulary in context."""
    config = LlamaConfig(
        vocab_size=sizes.num_ids,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        num_key_value_heads=sizes.num_kv_heads,
        head_dim=sizes.head_dim,
        max_position_embeddings=2048,
        eos_token_id=None,
    )
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(
            config, dtype=DTYPE, attn_implementation="sdpa", trust_remote_code=False
        )
        use_weight_first(model)  # as a model that is loaded
        target = Target(draw_tiles(model).requires_grad_(False))
        drafter = EagleDrafter(_layer_of(sizes), config, target.embed_tokens, GatheredHead(target.head_weight))
        draw_tiles(drafter.to(DTYPE))
    return SpeculativeDecoder(target, drafter.eval().requires_grad_(False), "in-context", sizes.tree, capacity=256)


def draw_tiles(module: M) -> M:
    """Random matrices, copies of a million random numbers, as a CPU is slow to draw more, and vectors of ones."""
    first = next(module.parameters())
    generator = torch.Generator(first.device).manual_seed(0)
    tile = torch.randn(TILE, generator=generator, device=first.device, dtype=first.dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
                continue
            for part in parameter.view(-1).split(TILE):
                part.copy_(tile[: part.shape[0]]).mul_(parameter.shape[-1] ** -0.5)
    return module


class StepSeconds(NamedTuple):
    """Of a measured step: seconds of every stage, tokens it yielded, rows of its vocabulary."""

    draft: float
    verify: float
    vocabulary: float
    other: float
    tokens: float
    active_rows: float


def stage_seconds(decoder: SpeculativeDecoder, num_steps: int) -> StepSeconds:
    """The least over requests of so many steps, after one that is not counted: what else a machine does only adds."""
    prompt, tree = torch.arange(PROMPT_LENGTH)[None], decoder.tree
    runs = []
    for _ in range(WARM_UP + NUM_REQUESTS):
        loop, stats = decoder.speculate(prompt, tree, max_new_tokens=(num_steps + 1) * (tree.depth + 1))
        for _ in islice(loop.steps(), num_steps + 1):
            pass
        stages = {name: stats.seconds[name] / stats.steps for name in STAGES}
        runs.append(StepSeconds(**stages, tokens=stats.mean_accept_length, active_rows=stats.mean_active_vocab))
    return StepSeconds(*map(min, zip(*runs[WARM_UP:], strict=True)))


def measure_overheads(num_steps: int) -> Overheads:
    """Of a decoder in which nothing else takes time, with few layers and levels and with more: the difference is a
    layer's, or a level's."""
    (layers, depth), (more_layers, deeper) = (2, 2), (6, 6)
    shallow = SMALL._replace(num_layers=layers, tree=TreeShape(depth, 8, 32))
    deep = SMALL._replace(num_layers=more_layers, tree=TreeShape(deeper, 8, 32))
    few, many = (stage_seconds(random_decoder(sizes), num_steps) for sizes in (shallow, deep))
    layer = max(many.verify - few.verify, 0.0) / (more_layers - layers)
    level = max(many.draft - few.draft, 0.0) / (deeper - depth)
    return Overheads(
        target_layer=layer,
        target_pass=max(few.verify - layers * layer, 0.0),
        level=level,
        draft=max(few.draft - depth * level, 0.0),
        vocabulary=(few.vocabulary + many.vocabulary) / 2,
        step=(few.other + many.other) / 2,
    )


def measure_layer_factor(device: Device, sizes: DecoderSizes, num_steps: int) -> float:
    """`Device.layer_factor`, at least 1: a step of this decoder less everything in it that is no product of a layer,
    over what `device` expects of these products in a loop."""
    decoder = random_decoder(sizes)
    measured = stage_seconds(decoder, num_steps)
    target = model_sizes(decoder.target.model)
    draft = eagle_sizes(Family.EAGLE, _layer_of(sizes), target, sizes.num_ids)
    setting = Setting(sizes.tree, PROMPT_LENGTH + num_steps, accept_length=measured.tokens)
    rows = DraftRows(round(measured.active_rows), follows=True)

    def expected(factor: float) -> float:
        cost = step_cost(Pair(replace(device, layer_factor=factor), target, draft, setting), rows)
        return cost.draft + cost.verify

    others = expected(0.0)
    return max((measured.draft + measured.verify - others) / (expected(1.0) - others), 1.0)


def _layer_of(sizes: DecoderSizes) -> EagleShape:
    return EagleShape(
        sizes.hidden_size,
        sizes.intermediate_size,
        sizes.num_heads,
        sizes.num_kv_heads,
        sizes.head_dim,
        1,
        1e-5,
        "silu",
        fc_bias=False,
        qkv_bias=False,
    )
