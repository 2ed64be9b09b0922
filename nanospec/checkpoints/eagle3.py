"""EAGLE-3 checkpoints of SafeAILab, SpecForge and speculators, under one set of names (see `detect`).

fc.weight [H, n Ht], layers.0.{hidden_norm,input_layernorm,post_attention_layernorm}.weight,
layers.0.self_attn.{q,k,v}_proj.weight [.., 2 H], o_proj, layers.0.mlp.*, norm.weight, lm_head.weight [D, H],
d2t int64 [D] (offsets), t2d bool [V]; optional: fc.bias, fc_norm.{0..n-1}.weight [Ht], input_norm.weight [n Ht],
q_norm and k_norm, further layers, embed_tokens.weight (the target's is used where its width fits)
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanospec.checkpoints.detect import Family
from nanospec.checkpoints.draft_config import layer_settings, read_shape, rope_config
from nanospec.checkpoints.draft_vocab_map import MAPS, read_vocab_map
from nanospec.checkpoints.files import check_weights
from nanospec.checkpoints.published_names import load_published
from nanospec.drafters.eagle3 import Eagle3Drafter, Eagle3Wiring, default_feature_layers
from nanospec.gathered_head import GatheredHead
from nanospec.target import Target, check_feature_layers

AUX_LAYERS = "eagle_aux_hidden_state_layer_ids"


def build_eagle3_drafter(
    directory: Path,
    config: dict[str, Any],
    tensors: Mapping[str, Tensor],
    target: Target,
    feature_layers: Sequence[int] | None = None,
) -> Eagle3Drafter:
    """The drafter made of `tensors` under normalised names, on the target's device and in its dtype.

    Raises ValueError naming the tensor or setting that is missing, unused, non-finite or does not match the target.
    """
    settings = layer_settings(config)
    weights = {name: tensor for name, tensor in tensors.items() if name not in MAPS}
    check_weights(weights, directory)
    shape = read_shape(settings, weights, directory)
    is_speculators = "speculators_model_type" in config
    wiring = read_wiring(settings, weights, target, feature_layers, is_speculators)
    fc_inputs = len(wiring.feature_layers) * wiring.target_hidden_size
    shape = replace(shape, two_inputs=True, input_norm=True, fc_inputs=fc_inputs)

    owns_embedding = shape.hidden_size != wiring.target_hidden_size
    if not owns_embedding:
        _check_embedding(weights.pop("embed_tokens.weight", None), settings, target)
    head, num_rows = _head(weights, tensors, shape.hidden_size, target)
    rope = rope_config(settings, shape, target.context_window)
    target_ids = read_vocab_map(tensors.get("d2t"), tensors.get("t2d"), num_rows, target.vocab_size)
    embedding = target.vocab_size if owns_embedding else target.embed_tokens
    with torch.device("meta"):  # sizes that a config only claims cost nothing
        drafter = Eagle3Drafter(shape, wiring, rope, embedding, head, target_ids)
    load_published(drafter, weights, directory, Family.EAGLE3)
    return drafter.to(device=target.device, dtype=target.dtype).eval().requires_grad_(False)


def read_wiring(
    settings: dict[str, Any],
    weights: Mapping[str, Tensor],
    target: Target,
    feature_layers: Sequence[int] | None = None,
    is_speculators: bool = False,
) -> Eagle3Wiring:
    """Wiring from what the settings of `layer_settings` say and the tensors show; `feature_layers` overrides them."""
    num_layers = target.config.num_hidden_layers
    layers = tuple(read_feature_layers(settings, num_layers) if feature_layers is None else feature_layers)
    try:
        check_feature_layers(layers, num_layers)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{error}; name others with feature_layers=") from None
    return Eagle3Wiring(
        feature_layers=layers,
        target_hidden_size=target.head_weight.shape[1],
        fc_norm="fc_norm.0.weight" in weights or _flag(settings, "fc_norm", False),
        norm_before_fc="input_norm.weight" in weights or _flag(settings, "norm_before_fc", False),
        # Both are invisible in the tensors. Where speculators' configs leave out the first, engines take it as true.
        norm_before_residual=_flag(settings, "norm_before_residual", is_speculators),
        norm_output=_flag(settings, "norm_output", False),
    )


def read_feature_layers(settings: dict[str, Any], num_layers: int) -> tuple[Any, ...]:
    """Layers whose inputs are the features. Two conventions: speculators' key counts inputs, that of SpecForge, inside
    eagle_config, counts outputs. Without either, the layers that EAGLE-3 was trained with."""
    own, nested = settings.get(AUX_LAYERS), settings.get("eagle_config")
    outputs = nested.get(AUX_LAYERS) if isinstance(nested, dict) else None
    given = own if own is not None else outputs
    if given is None:
        return default_feature_layers(num_layers)
    if not isinstance(given, list) or not all(isinstance(layer, int) for layer in given):
        raise ValueError(f"draft config {AUX_LAYERS} must be a list of whole numbers, got {reprlib.repr(given)}")
    return tuple(given) if own is not None else tuple(layer + 1 for layer in given)


def _head(
    weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], hidden_size: int, target: Target
) -> tuple[GatheredHead | int, int]:
    """The target's head or the number of rows of the draft's own, and the number of rows."""
    own = weights.get("lm_head.weight")
    if own is not None:
        if own.shape[0] > target.vocab_size:
            raise ValueError(
                f"draft lm_head.weight must have at most the target's {target.vocab_size} rows, got {own.shape[0]}"
            )
        return own.shape[0], own.shape[0]
    d2t = tensors.get("d2t")
    if d2t is not None and d2t.dim() != 1:
        raise ValueError(f"draft d2t must be 1-D, an offset per row of the draft's head, got shape {tuple(d2t.shape)}")
    num_rows = target.vocab_size if d2t is None else d2t.shape[0]
    if num_rows != target.vocab_size or hidden_size != target.head_weight.shape[1]:
        raise ValueError(
            f"draft must hold 'lm_head.weight': it scores {num_rows} of the target's {target.vocab_size} ids "
            f"with hidden size {hidden_size}"
        )
    return GatheredHead(target.head_weight, target.head_bias), num_rows


def _check_embedding(embedding: Tensor | None, settings: dict[str, Any], target: Target) -> None:
    """The vocabulary must be the target's; the stored embedding is not used: some files hold random numbers there."""
    vocab_size = settings.get("vocab_size", target.vocab_size) if embedding is None else embedding.shape[0]
    if vocab_size != target.vocab_size:
        raise ValueError(f"draft vocabulary must be the target's {target.vocab_size} ids, got {vocab_size}")


def _flag(settings: dict[str, Any], key: str, default: bool) -> bool:
    value = settings.get(key)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise ValueError(f"draft config {key} must be true or false, got {reprlib.repr(value)}")
    return value
