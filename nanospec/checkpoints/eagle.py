"""EAGLE-1/2 checkpoints: names as published by SafeAILab, read strictly, optional parts decided by the tensors.

fc.weight [D, 2D], fc.bias [D] (optional), layers.i.self_attn.{q,k,v,o}_proj.weight (+ .bias on q, k, v),
layers.i.mlp.{gate,up,down}_proj.weight, layers.i.post_attention_layernorm.weight,
layers.i.input_layernorm.weight for i > 0 only, embed_tokens.weight (stored, never trained: the target's is used)
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig
from transformers.activations import ACT2FN

from nanospec.checkpoints.files import check_finite, read_config, read_tensors, resolve_checkpoint
from nanospec.drafters.eagle import EagleDrafter, EagleShape
from nanospec.gathered_head import GatheredHead
from nanospec.target import Target

PREFIXES = ("module.", "draft_model.", "model.")
FUSED = {"self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"), "mlp.gate_up_proj": ("gate_proj", "up_proj")}
ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")


def load_eagle_drafter(path: str | Path, target: Target) -> EagleDrafter:
    """The drafter in `path` (directory or hub id) on the target's device and in its dtype.

    Raises FileNotFoundError, or ValueError naming the tensor or key that is missing, unused, non-finite or does not
    match the target.
    """
    directory = resolve_checkpoint(path, "draft")
    config = read_config(directory)
    if config.get("model_type") == "eagle" and isinstance(config.get("model"), dict):
        config = config["model"]  # a config of a config, as some re-uploads have it
    tensors = {_strip_prefix(name): tensor for name, tensor in read_tensors(directory).items()}
    check_finite(tensors, directory)
    _check_against_target(config, tensors, target, directory)
    shape = _read_shape(config, tensors, directory)
    head = GatheredHead(target.head_weight, target.head_bias)
    drafter = EagleDrafter(shape, _rope_config(config, shape, target), target.embed_tokens, head)
    expected = _published(drafter)
    missing, unused = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unused:
        raise ValueError(f"draft {directory} must be EAGLE-1/2: missing tensors {missing}, unused tensors {unused}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"draft tensor {name!r} must have shape {tuple(expected[name].shape)}, got {tuple(tensor.shape)}"
            )
    drafter.load_state_dict(_fuse(tensors))
    return drafter.to(device=target.device, dtype=target.dtype).eval().requires_grad_(False)


def save_eagle_drafter(drafter: EagleDrafter, directory: Path, config: dict[str, Any]) -> None:
    """Writes model.safetensors and config.json in the published layout, without the embeddings."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in _published(drafter).items()}
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _strip_prefix(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _check_against_target(config: dict[str, Any], tensors: dict[str, Tensor], target: Target, directory: Path) -> None:
    hidden_size = target.head_weight.shape[1]
    if "fc.weight" not in tensors:
        raise ValueError(f"draft must be EAGLE-1/2 and hold 'fc.weight', got {sorted(tensors)[:8]} in {directory}")
    expected = (hidden_size, 2 * hidden_size)
    if tuple(tensors["fc.weight"].shape) != expected:
        raise ValueError(
            f"draft fc.weight must be {expected} for a target of hidden size {hidden_size}, "
            f"got {tuple(tensors['fc.weight'].shape)}"
        )
    embedding = tensors.pop("embed_tokens.weight", None)
    vocab_size = config.get("vocab_size", target.vocab_size) if embedding is None else embedding.shape[0]
    if vocab_size != target.vocab_size:
        raise ValueError(f"draft vocabulary must be the target's {target.vocab_size} ids, got {vocab_size}")


def _read_shape(config: dict[str, Any], tensors: dict[str, Tensor], directory: Path) -> EagleShape:
    missing = [key for key in ("hidden_size", "num_attention_heads", "intermediate_size") if key not in config]
    if missing:
        raise ValueError(f"draft config.json must hold {missing[0]!r}, got {sorted(config)} in {directory}")
    hidden_size, num_heads = _whole(config, "hidden_size"), _whole(config, "num_attention_heads")
    eps, activation = config.get("rms_norm_eps", 1e-6), config.get("hidden_act", "silu")
    if not isinstance(eps, int | float) or eps <= 0:
        raise ValueError(f"draft config rms_norm_eps must be a positive number, got {eps!r}")
    if activation not in ACT2FN:
        raise ValueError(f"draft config hidden_act must be an activation of transformers, got {activation!r}")
    shape = EagleShape(
        hidden_size=hidden_size,
        intermediate_size=_whole(config, "intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=_whole(config, "num_key_value_heads", num_heads),
        head_dim=_whole(config, "head_dim", hidden_size // num_heads),
        num_layers=_count_layers(tensors),
        rms_norm_eps=eps,
        hidden_act=activation,
        fc_bias="fc.bias" in tensors,
        qkv_bias="layers.0.self_attn.q_proj.bias" in tensors,
    )
    if shape.hidden_size != tensors["fc.weight"].shape[0]:
        raise ValueError(
            f"draft config hidden_size must be {tensors['fc.weight'].shape[0]} as in fc.weight, got {shape.hidden_size}"
        )
    return shape


def _whole(config: dict[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"draft config {key} must be a positive whole number, got {value!r}")
    return value


def _count_layers(tensors: dict[str, Tensor]) -> int:
    found = {int(match[1]) for name in tensors if (match := re.match(r"layers\.(\d+)\.", name))}
    return max(found, default=0) + 1


def _rope_config(config: dict[str, Any], shape: EagleShape, target: Target) -> LlamaConfig:
    """Rotary settings of the draft: its own keys, or the Llama default (base 10000), never the target's."""
    return LlamaConfig(
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=config.get("max_position_embeddings") or target.context_window,
        **{key: config[key] for key in ROPE_KEYS if config.get(key) is not None},
    )


def _fuse(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> names of `EagleDrafter`: projections concatenated, norm weights bare, `mlp.` dropped."""
    state = dict(tensors)
    for layer in range(_count_layers(tensors)):
        for fused, parts in FUSED.items():
            block, name = fused.split(".")
            for kind in ("weight", "bias"):
                sources = [f"layers.{layer}.{block}.{part}.{kind}" for part in parts]
                if all(source in state for source in sources):
                    state[f"layers.{layer}.{name}.{kind}"] = torch.cat([state.pop(source) for source in sources])
    return {_bare_name(name): tensor for name, tensor in state.items()}


def _bare_name(name: str) -> str:
    name = name.replace("layernorm.weight", "layernorm")
    return re.sub(r"\.(self_attn\.o_proj|mlp\.down_proj)\.", lambda match: f".{match[1].split('.')[1]}.", name)


def _published(drafter: EagleDrafter) -> dict[str, Tensor]:
    """The drafter's tensors under their published names: the inverse of `_fuse`."""
    tensors = {}
    for name, tensor in drafter.state_dict().items():
        tensors.update(_unfuse(name, tensor, drafter.shape))
    return tensors


def _unfuse(name: str, tensor: Tensor, shape: EagleShape) -> dict[str, Tensor]:
    """The published tensors that one of `EagleDrafter` is made of."""
    match = re.match(r"(layers\.\d+)\.(\w+)(?:\.(weight|bias))?$", name)
    if match is None:
        return {name: tensor}
    layer, part, kind = match[1], match[2], match[3] or "weight"
    if part == "qkv_proj":
        heads = (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)
        pieces = tensor.split([count * shape.head_dim for count in heads])
        return {f"{layer}.self_attn.{piece}_proj.{kind}": value for piece, value in zip("qkv", pieces, strict=True)}
    if part == "gate_up_proj":
        gate, up = tensor.chunk(2)
        return {f"{layer}.mlp.gate_proj.{kind}": gate, f"{layer}.mlp.up_proj.{kind}": up}
    block = {"o_proj": "self_attn.o_proj", "down_proj": "mlp.down_proj"}.get(part, part)
    return {f"{layer}.{block}.{kind}": tensor}
