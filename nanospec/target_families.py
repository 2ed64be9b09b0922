"""Which architectures of transformers are right over trees, what sets each apart, and why others are refused."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from nanospec.kv_cache import KVCache
from nanospec.layer_masks import FULL, SLIDING, LayerMasks
from nanospec.tensor_parallel import num_local_kv_heads


class Family(NamedTuple):
    """How an architecture takes its masks and makes its logits.

    masks_by_layer_type  `layer_types` names a mask for every layer; otherwise `sliding_window` holds for all of them
    attention            the kernels that are right with trees, the preferred one first
    caps_logits          `final_logit_softcapping` applies behind the head
    has_experts          tokens are routed to experts
    has_latent_cache     the cache holds one latent vector and one rotated key for all heads (MLA)
    """

    masks_by_layer_type: bool = False
    attention: tuple[str, ...] = ("sdpa", "eager")
    caps_logits: bool = False
    has_experts: bool = False
    has_latent_cache: bool = False


FAMILIES = {
    "deepseek_v3": Family(has_experts=True, has_latent_cache=True),
    "gemma": Family(),
    "gemma2": Family(masks_by_layer_type=True, attention=("eager",), caps_logits=True),  # sdpa has no soft-cap
    "gemma3": Family(masks_by_layer_type=True),  # text and images: the text model alone, which has no cap there
    "gemma3_text": Family(masks_by_layer_type=True, caps_logits=True),
    "glm4_moe": Family(has_experts=True),
    "llama": Family(),
    "mellum": Family(masks_by_layer_type=True, has_experts=True),
    "mistral": Family(),
    "mixtral": Family(has_experts=True),
    "phi3": Family(),
    "qwen2": Family(masks_by_layer_type=True),
    "qwen3": Family(masks_by_layer_type=True),
    "qwen3_moe": Family(has_experts=True),
}
# Settings that say why another architecture is left out; None, 0 and False are no reason.
_REASONS = {
    "is_encoder_decoder": "an encoder beside the decoder is not supported",
    "attention_chunk_size": "attention within chunks is not supported",
    "short_conv_kernel_size": "a recurrent state cannot be branched",
    "kv_lora_rank": "latent keys and values (MLA) are supported for deepseek_v3 alone",
    "num_kv_shared_layers": "layers that share keys and values are not supported",
    "linear_num_value_heads": "a recurrent state cannot be branched",
    "mamba_d_state": "a recurrent state cannot be branched",
    "state_size": "a recurrent state cannot be branched",
    "lru_width": "a recurrent state cannot be branched",
    "logit_scale": "scaled logits are not supported",
    "logits_scaling": "scaled logits are not supported",
}


def family_of(model: PreTrainedModel) -> Family:
    return FAMILIES[model.config.model_type]


def refuse_architecture(config: Mapping[str, Any], argument: str = "target") -> None:
    """Raises NotImplementedError for a config.json that names no supported model_type, listing those that are."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        text_config = config.get("text_config")
        reason = _reason(config) or (_reason(text_config) if isinstance(text_config, Mapping) else "")
        raise NotImplementedError(
            f"{argument} model_type must be one of {', '.join(FAMILIES)}, got {reprlib.repr(model_type)}{reason}"
        )


def _reason(config: Mapping[str, Any]) -> str:
    for key, reason in _REASONS.items():
        if config.get(key):
            return f" ({key}={reprlib.repr(config[key])}: {reason})"
    return ""


def refuse_unsupported(model: PreTrainedModel, compiled_by: str | None = None) -> None:
    """Raises NotImplementedError for what would decode wrongly, naming the setting, its value and the choices."""
    refuse_architecture(model.config.to_dict())
    config, family = model.config.get_text_config(), family_of(model)
    attention = config._attn_implementation
    if attention not in family.attention:
        raise NotImplementedError(
            f"target attn_implementation of {config.model_type} must be one of {', '.join(family.attention)}, "
            f"got {reprlib.repr(attention)}: other kernels ignore or break tree masks"
        )
    if getattr(config, "use_bidirectional_attention", None):
        raise NotImplementedError(
            f"target use_bidirectional_attention must be off, got {reprlib.repr(config.use_bidirectional_attention)}: "
            "a token that sees later ones cannot be decoded before them"
        )
    if any("dynamic" in rope["rope_type"] for rope in _ropes(config)):
        raise NotImplementedError(
            "target rope_type must not depend on the length of a pass, got 'dynamic': a tree is longer than a branch"
        )
    if family.has_experts:
        _refuse_experts(config._experts_implementation, model.dtype, compiled_by)


def _refuse_experts(implementation: str, dtype: torch.dtype, compiled_by: str | None) -> None:
    if compiled_by is not None and implementation == "eager":
        raise NotImplementedError(
            "target experts_implementation must be grouped_mm or batched_mm to be compiled, got 'eager': "
            "its shapes depend on the routing"
        )
    if dtype == torch.float64 and implementation == "grouped_mm":
        raise NotImplementedError(
            "target experts_implementation must be eager or batched_mm in float64, got 'grouped_mm': "
            "model.set_experts_implementation changes it"
        )


def layer_masks(model: PreTrainedModel) -> LayerMasks:
    """The masks of a supported model.

    Raises NotImplementedError for a layer type other than full and sliding attention, ValueError for a window below 1.
    """
    config, by_kind = model.config.get_text_config(), family_of(model).masks_by_layer_type
    window = getattr(config, "sliding_window", None)
    if by_kind:
        kinds = tuple(dict.fromkeys(config.layer_types))
    else:
        kinds = (FULL,) if window is None else (SLIDING,)
    for kind in kinds:
        if kind not in (FULL, SLIDING):
            raise NotImplementedError(f"target layer_types must be {FULL} or {SLIDING}, got {reprlib.repr(kind)}")
    if SLIDING not in kinds:
        return LayerMasks(kinds, None, by_kind)
    if not isinstance(window, int) or window < 1:
        raise ValueError(f"target sliding_window must be at least 1 where layers slide, got {reprlib.repr(window)}")
    return LayerMasks(kinds, window, by_kind)


def empty_cache(model: PreTrainedModel, num_layers: int) -> KVCache:
    """Of `num_layers` layers such as this process holds, in the model's dtype, on its device; without room as yet."""
    config, weight = model.config.get_text_config(), model.get_output_embeddings().weight
    if family_of(model).has_latent_cache:
        width = config.kv_lora_rank + config.qk_rope_head_dim
        return KVCache(num_layers, 1, width, weight.dtype, weight.device, num_parts=1)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return KVCache(num_layers, num_local_kv_heads(model), head_dim, weight.dtype, weight.device)


def logit_soft_cap(model: PreTrainedModel) -> float | None:
    """c of c tanh(logits / c) behind the head; None where the model's forward applies none."""
    if not family_of(model).caps_logits:
        return None
    return model.config.get_text_config().final_logit_softcapping


def switching_position(model: PreTrainedModel) -> int | None:
    """First position whose pass rotates otherwise (longrope: Phi-3 with 128k tokens); None where all rotate alike."""
    ropes = _ropes(model.config.get_text_config())
    return min(
        (rope["original_max_position_embeddings"] for rope in ropes if rope["rope_type"] == "longrope"), default=None
    )


def _ropes(config: PreTrainedConfig) -> Iterator[Mapping[str, Any]]:
    """Rotary settings: those of all layers, or of each layer type."""
    parameters = config.rope_parameters or {}
    for rope in (parameters,) if "rope_type" in parameters else parameters.values():
        if rope is not None:
            yield rope
