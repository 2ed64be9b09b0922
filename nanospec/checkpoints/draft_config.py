"""What a draft's config.json says that its tensors leave open: heads, epsilon, activation, rotary settings."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from nanospec.checkpoints.detect import count_layers
from nanospec.drafters.eagle import EagleShape
from nanospec.untrusted_files import shown_names

MAX_LAYERS, MAX_HEAD_DIM = 2**10, 2**14
MAX_SIZE = 2**24  # no draft is wider; what a damaged config claims stays countable
# What transformers raises for rotary settings that are none.
UNUSABLE_ROPE = (
    StrictDataclassError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError,
)  # fmt: skip
PARTIAL = "partial_rotary_factor"
ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")


def layer_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings on one level: some re-uploads nest them in "model", speculators in "transformer_layer_config"."""
    if config.get("model_type") == "eagle" and isinstance(config.get("model"), dict):
        return {**config, **config["model"]}
    nested = config.get("transformer_layer_config")
    return {**config, **nested} if isinstance(nested, dict) else config


def read_shape(settings: dict[str, Any], tensors: Mapping[str, Tensor], directory: Path) -> EagleShape:
    """Shape of the draft: sizes from the settings, optional parts from the tensors (normalised names).

    Raises ValueError naming the setting that is missing or of the wrong kind.
    """
    missing = [key for key in ("hidden_size", "num_attention_heads", "intermediate_size") if key not in settings]
    if missing:
        raise ValueError(f"draft config.json must hold {missing[0]!r}, got {shown_names(settings)} in {directory}")
    hidden_size, num_heads = whole_number(settings, "hidden_size"), whole_number(settings, "num_attention_heads")
    eps, activation = settings.get("rms_norm_eps", 1e-6), settings.get("hidden_act", "silu")
    if not isinstance(eps, int | float) or isinstance(eps, bool) or eps <= 0:
        raise ValueError(f"draft config rms_norm_eps must be a positive number, got {reprlib.repr(eps)}")
    if not isinstance(activation, str) or activation not in ACT2FN:
        raise ValueError(
            f"draft config hidden_act must be an activation of transformers, got {reprlib.repr(activation)}"
        )
    shape = EagleShape(
        hidden_size=hidden_size,
        intermediate_size=whole_number(settings, "intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=whole_number(settings, "num_key_value_heads", num_heads),
        head_dim=whole_number(settings, "head_dim", hidden_size // num_heads),
        num_layers=max(count_layers(tensors), 1),
        rms_norm_eps=eps,
        hidden_act=activation,
        fc_bias="fc.bias" in tensors,
        qkv_bias="layers.0.self_attn.q_proj.bias" in tensors,
        qk_norm="layers.0.self_attn.q_norm.weight" in tensors,
        input_norm="layers.0.input_layernorm.weight" in tensors,
        embed_norm="embed_layernorm.weight" in tensors,
        head_norm="lm_head_layernorm.weight" in tensors,
    )
    _check_bounds(shape)
    if "fc.weight" in tensors and shape.hidden_size != tensors["fc.weight"].shape[0]:
        raise ValueError(
            f"draft config hidden_size must be {tensors['fc.weight'].shape[0]} as in fc.weight, got {shape.hidden_size}"
        )
    return shape


def _check_bounds(shape: EagleShape) -> None:
    """Nothing is made of sizes that no draft has: layers are modules, and the rotation of a head is computed."""
    if shape.num_layers > MAX_LAYERS:
        raise ValueError(f"draft must have at most {MAX_LAYERS} layers, got {shape.num_layers}")
    if shape.head_dim > MAX_HEAD_DIM or shape.num_heads * shape.head_dim > MAX_SIZE:
        raise ValueError(
            f"draft config head_dim must be at most {MAX_HEAD_DIM} and all heads {MAX_SIZE} wide, got "
            f"{shape.num_heads} heads of {shape.head_dim}"
        )


def rope_config(settings: dict[str, Any], shape: EagleShape, context_window: int) -> LlamaConfig:
    """Rotary settings of the draft: its own keys, or the Llama default (base 10000), never the target's.

    Raises ValueError for settings that transformers does not know or that give no angles, and for angles of a part of
    a head only.
    """
    given = {key: settings[key] for key in ROPE_KEYS if settings.get(key) is not None}
    _refuse_partial_rotation(settings, *(given.get(key) for key in ROPE_KEYS))
    try:
        config = LlamaConfig(
            hidden_size=shape.hidden_size,
            num_attention_heads=shape.num_heads,
            head_dim=shape.head_dim,
            max_position_embeddings=whole_number(settings, "max_position_embeddings", context_window),
            **given,
        )
        frequencies = LlamaRotaryEmbedding(config).inv_freq
    except UNUSABLE_ROPE as error:
        raise ValueError(
            f"draft config must hold rotary settings of transformers, got {reprlib.repr(given)}: {str(error)[:400]}"
        ) from None
    is_whole = 2 * frequencies.shape[0] == shape.head_dim
    if not is_whole or not bool((frequencies.isfinite() & (frequencies > 0)).all()):
        raise ValueError(
            f"draft config must give finite angles to pairs of {shape.head_dim} numbers, got {frequencies.shape[0]} of "
            f"{reprlib.repr(given)}"
        )
    return config


def _refuse_partial_rotation(*parts: object) -> None:
    """ValueError for heads of which a part stays as it is: drafts of these formats rotate whole heads."""
    for part in parts:
        factor = part.get(PARTIAL) if isinstance(part, dict) else None
        if factor is not None and factor != 1:
            raise ValueError(
                f"draft config {PARTIAL} must be 1, as drafts rotate whole heads, got {reprlib.repr(factor)}"
            )


def whole_number(settings: dict[str, Any], key: str, default: int | None = None) -> int:
    """A positive whole number of the settings; ValueError for anything else."""
    value = settings.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_SIZE:
        raise ValueError(
            f"draft config {key} must be a positive whole number up to {MAX_SIZE}, got {reprlib.repr(value)}"
        )
    return value
