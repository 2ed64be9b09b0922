"""Random targets and drafters, small enough for hundreds of generations in a test."""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from nanospec.drafters.eagle import EagleDrafter, EagleShape
from nanospec.gathered_head import GatheredHead
from nanospec.target import Target

VOCAB_SIZE = 61


def randomize(module: nn.Module, seed: int, std: float = 0.25) -> None:
    """Every parameter drawn anew: weights wide enough that tokens differ, norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * std
            parameter.copy_(noise + 1.0 if parameter.ndim == 1 else noise)


def tiny_model(
    seed: int, vocab_size: int = VOCAB_SIZE, dtype: torch.dtype = torch.float64, window: int = 128
) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=window,
        tie_word_embeddings=False,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).to(dtype)
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
