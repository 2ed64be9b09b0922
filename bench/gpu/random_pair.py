"""Targets and EAGLE drafters with random weights, made on the device from their sizes: nothing is downloaded."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config
from transformers.initialization import no_init_weights

from bench.gpu.sizes import PairSize
from nanospec.drafters.eagle import EagleDrafter, EagleShape
from nanospec.gathered_head import GatheredHead
from nanospec.ops.weight_first import use_weight_first
from nanospec.planning.random_decoder import draw_tiles
from nanospec.target import Target

CONTEXT_WINDOW = 8192
CONFIGS: dict[str, type[PretrainedConfig]] = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


def random_target(size: PairSize, device: torch.device, dtype: torch.dtype) -> Target:
    """A target of this size whose parameters are drawn on `device`, in `dtype`."""
    torch.manual_seed(0)
    config = _config(size)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return Target(model.requires_grad_(False))


def tiled_target(size: PairSize, device: torch.device, dtype: torch.dtype) -> Target:
    """As `random_target`, its matrices filled with copies of a million random numbers: a CPU is slow to draw more."""
    with torch.device(device), no_init_weights():
        model = AutoModelForCausalLM.from_config(_config(size), dtype=dtype, attn_implementation="sdpa")
    model.tie_weights()  # left out with the drawing
    use_weight_first(model)  # as a model that is loaded
    return Target(draw_tiles(model).requires_grad_(False))


def random_drafter(
    size: PairSize, embed_tokens: nn.Module, head_weight: Tensor, head_bias: Tensor | None = None
) -> EagleDrafter:
    """The EAGLE layer of a target of this size, on the device and in the dtype of `head_weight` [V, D].

    Everything is drawn so that states keep their size: nothing over- or underflows.
    """
    has_qkv_bias = size.model_type == "qwen2"
    heads = size.num_heads, size.num_kv_heads, size.head_dim
    shape = EagleShape(size.hidden_size, size.intermediate_size, *heads, 1, 1e-5, "silu", False, has_qkv_bias)
    with no_init_weights():  # drawn below, on the device
        drafter = EagleDrafter(shape, _rope_config(size), embed_tokens, GatheredHead(head_weight, head_bias))
    drafter = drafter.to(device=head_weight.device, dtype=head_weight.dtype).requires_grad_(False)
    with torch.no_grad():
        for parameter in drafter.parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    return drafter.eval()


def random_head(vocab_size: int, hidden_size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[V, D], about the size of a trained head's entries."""
    return torch.randn(vocab_size, hidden_size, device=device, dtype=dtype) * hidden_size**-0.5


def random_prompt(vocab_size: int, length: int, device: torch.device, seed: int = 0) -> Tensor:
    """int64 [1, length]"""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (1, length), generator=generator).to(device)


def free_memory(device: torch.device) -> None:
    """Gives back what deleted models held, so that the next ones fit."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _config(size: PairSize) -> PretrainedConfig:
    extra = {} if size.model_type == "qwen2" else {"head_dim": size.head_dim}
    return CONFIGS[size.model_type](
        vocab_size=size.vocab_size,
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        num_key_value_heads=size.num_kv_heads,
        max_position_embeddings=CONTEXT_WINDOW,
        tie_word_embeddings=size.tied,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **extra,
    )


def _rope_config(size: PairSize) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=size.hidden_size,
        num_attention_heads=size.num_heads,
        head_dim=size.head_dim,
        max_position_embeddings=CONTEXT_WINDOW,
    )
