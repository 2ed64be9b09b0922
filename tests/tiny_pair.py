"""Random targets and drafters, small enough for hundreds of generations in a test."""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from nanospec.drafters.eagle import EagleDrafter, EagleShape
from nanospec.drafters.eagle3 import Eagle3Drafter, Eagle3Wiring, default_feature_layers
from nanospec.gathered_head import GatheredHead
from nanospec.target import Target

VOCAB_SIZE = 61
FAMILIES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
EAGLE3_LAYERS = 7  # the fewest of a target whose low, middle and high layers differ


def randomize(module: nn.Module, seed: int, std: float = 0.25) -> None:
    """Every parameter drawn anew: weights wide enough that tokens differ, norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * std
            parameter.copy_(noise + 1.0 if parameter.ndim == 1 else noise)


def tiny_model(
    seed: int,
    vocab_size: int = VOCAB_SIZE,
    dtype: torch.dtype = torch.float64,
    window: int = 128,
    num_layers: int = 2,
    family: str = "llama",
    num_heads: tuple[int, int] = (4, 2),
) -> PreTrainedModel:
    """num_heads: those of queries, and those of keys and values."""
    config_class, model_class = FAMILIES[family]
    config = config_class(
        vocab_size=vocab_size,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads[0],
        num_key_value_heads=num_heads[1],
        max_position_embeddings=window,
        tie_word_embeddings=False,
        eos_token_id=None,
        head_dim=6,
    )
    model = model_class(config).to(dtype)
    randomize(model, seed, std=0.12)
    with torch.no_grad():  # the last token says most about the next one, so that a drafter can be right
        model.model.embed_tokens.weight.mul_(8)
        model.lm_head.weight.mul_(8)
    return model


def tiny_target(
    seed: int, vocab_size: int = VOCAB_SIZE, dtype: torch.dtype = torch.float64, window: int = 128
) -> Target:
    return Target(tiny_model(seed, vocab_size, dtype, window))


def tiny_drafter(target: Target, seed: int, std: float = 0.25) -> EagleDrafter:
    """A drafter that passes the embedding on, plus noise: right for some tokens, wrong for others."""
    hidden = target.head_weight.shape[1]
    shape = EagleShape(hidden, 40, 4, 2, hidden // 4, 1, 1e-6, "silu", fc_bias=True, qkv_bias=False)
    head = GatheredHead(target.head_weight, target.head_bias)
    drafter = EagleDrafter(shape, target.config, target.embed_tokens, head).to(target.dtype)
    randomize(drafter, seed, std)
    with torch.no_grad():
        drafter.fc.weight[:, :hidden] += torch.eye(hidden)
    return drafter.requires_grad_(False)


def tiny_eagle3_target(seed: int, family: str = "llama") -> Target:
    return Target(tiny_model(seed, num_layers=EAGLE3_LAYERS, family=family))


def tiny_eagle3_drafter(
    target: Target,
    seed: int,
    num_rows: int = VOCAB_SIZE,
    std: float = 0.02,
    rope: PreTrainedConfig | None = None,
    **wiring: bool,
) -> Eagle3Drafter:
    """A drafter whose attention passes the embedding on, plus noise; its own head scores `num_rows` of the ids, its
    positions turn as `rope` says, or as the target's."""
    hidden = target.head_weight.shape[1]
    shape = EagleShape(
        hidden, 40, 4, 4, hidden // 4, 1, 1e-6, "silu", fc_bias=False, qkv_bias=False, input_norm=True, two_inputs=True,
        fc_inputs=3 * hidden,
    )  # fmt: skip
    layers = default_feature_layers(target.config.num_hidden_layers)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randperm(target.vocab_size, generator=generator)[:num_rows].sort().values
    drafter = Eagle3Drafter(
        shape,
        Eagle3Wiring(layers, hidden, **wiring),
        rope or target.config,
        target.embed_tokens,
        num_rows,
        ids if num_rows < target.vocab_size else None,
    ).to(target.dtype)
    randomize(drafter, seed, std)
    layer = drafter.layers[0]
    with torch.no_grad():
        itself = torch.eye(hidden, dtype=target.dtype)
        layer.qkv_proj.weight[:, :hidden] += torch.cat((3 * itself, 3 * itself, itself))
        layer.o_proj.weight += 4 * itself
        drafter.lm_head.weight.copy_(target.head_weight[ids])
    return drafter.requires_grad_(False)
