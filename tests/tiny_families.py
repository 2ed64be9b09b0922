"""Tiny random targets of every supported architecture; windows shorter than what the tests decode."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import LlamaConfig, PreTrainedConfig, PreTrainedModel

from nanospec.drafters.eagle import EagleDrafter, EagleShape
from nanospec.gathered_head import GatheredHead
from nanospec.target import Target
from tests.tiny_pair import randomize

VOCAB_SIZE, WINDOW = 50, 5
SIZES = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.1,
}  # fmt: skip
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
GEMMA = {"head_dim": 10, "sliding_window": WINDOW, "layer_types": MIXED, "query_pre_attn_scalar": 8}
IMAGES = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
LONGROPE_WINDOW = 40
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
ROUTED = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
GROUPED = {**ROUTED, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
LATENT = {"kv_lora_rank": 12, "q_lora_rank": 10, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 10}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
# name -> (prefix of the classes in transformers, settings beside SIZES)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek_v3": ("DeepseekV3", {"num_key_value_heads": 4, **LATENT, **GROUPED}),
    "gemma": ("Gemma", {"head_dim": 10}),
    "gemma2": ("Gemma2", {**GEMMA, "final_logit_softcapping": 6.0, "attn_logit_softcapping": 4.0}),
    "gemma3": ("Gemma3", GEMMA),
    "gemma3_text": ("Gemma3Text", {**GEMMA, "final_logit_softcapping": 6.0}),
    "glm4_moe": ("Glm4Moe", {"use_qk_norm": True, "attention_bias": True, **GROUPED}),
    "llama-bias": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "mellum": ("Mellum", {"head_dim": 10, "sliding_window": WINDOW, "layer_types": MIXED, "num_experts": 4, **ROUTED}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 10}),
    "mistral-window": ("Mistral", {"sliding_window": WINDOW}),
    "mixtral": ("Mixtral", EXPERTS),
    "mixtral-window": ("Mixtral", {"sliding_window": WINDOW, **EXPERTS}),
    "phi3": ("Phi3", {"partial_rotary_factor": 0.5}),
    "phi3-longrope": ("Phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": LONGROPE_WINDOW}),
    "phi3-window": ("Phi3", {"sliding_window": WINDOW}),
    "qwen2": ("Qwen2", {}),  # its projections have biases
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 10}),
    "qwen3-window": ("Qwen3", {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": MIXED}),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "mlp_only_layers": [1],
            "use_sliding_window": True, "sliding_window": WINDOW,
        },
    ),
}  # fmt: skip


WITH_EXPERTS = ("DeepseekV3", "Glm4Moe", "Mellum", "Mixtral", "Qwen3Moe")


def family_config(name: str, **changes: Any) -> PreTrainedConfig:
    prefix, settings = FAMILIES[name]
    settings = SIZES | settings | changes
    if prefix == "Gemma3":
        settings = {"text_config": settings, "vision_config": IMAGES, "mm_tokens_per_image": 4}
    return getattr(transformers, f"{prefix}Config")(**settings)


def family_model(name: str, seed: int = 3, std: float = 0.2, **changes: Any) -> PreTrainedModel:
    """In float64, randomised; the last token says much about the next one, so that a drafter can be right."""
    prefix = FAMILIES[name][0]
    class_name = {"Gemma3Text": "Gemma3ForCausalLM", "Gemma3": "Gemma3ForConditionalGeneration"}.get(prefix)
    model = getattr(transformers, class_name or f"{prefix}ForCausalLM")(family_config(name, **changes)).double()
    if prefix in WITH_EXPERTS:
        model.set_experts_implementation("batched_mm")  # grouped_mm has no float64
    randomize(model, seed, std)
    embedding = model.get_input_embeddings()
    is_tied = embedding.weight is model.get_output_embeddings().weight
    with torch.no_grad():
        embedding.weight.mul_((2 if is_tied else 8) / getattr(embedding, "scalar_embed_scale", 1.0))
    return model.eval().requires_grad_(False)


def family_drafter(target: Target, seed: int = 2, std: float = 0.03) -> EagleDrafter:
    """As `tiny_pair.tiny_drafter`: passes the embedding on, plus noise."""
    hidden = target.head_weight.shape[1]
    shape = EagleShape(hidden, 40, 4, 2, hidden // 4, 1, 1e-6, "silu", fc_bias=True, qkv_bias=False)
    rope = LlamaConfig(hidden_size=hidden, num_attention_heads=4, max_position_embeddings=128)
    drafter = EagleDrafter(shape, rope, target.embed_tokens, GatheredHead(target.head_weight, target.head_bias))
    drafter = drafter.to(target.dtype)
    randomize(drafter, seed, std)
    with torch.no_grad():
        drafter.fc.weight[:, :hidden] += torch.eye(hidden)
    return drafter.requires_grad_(False)
