"""Names of tensors in files and in our drafters: projections are fused here, norm weights bare, `mlp.` dropped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from nanospec.checkpoints.detect import count_layers
from nanospec.checkpoints.files import name_difference
from nanospec.drafters.eagle import EagleDrafter, EagleShape

FUSED = {"self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"), "mlp.gate_up_proj": ("gate_proj", "up_proj")}
NORM = re.compile(r"norm(\.\d+)?$")


def load_published(drafter: EagleDrafter, tensors: Mapping[str, Tensor], directory: Path, family: str) -> None:
    """Gives the drafter, which may be on the meta device, the tensors under published names as its own.

    Raises ValueError naming every tensor that is missing or unused, or the first of another shape.
    """
    expected = published_tensors(drafter)
    if difference := name_difference(expected.keys(), tensors.keys()):
        raise ValueError(f"draft {directory} must be {family}: {difference}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"draft tensor {name!r} must have shape {tuple(expected[name].shape)}, got {tuple(tensor.shape)}"
            )
    drafter.load_state_dict(_fuse(tensors), assign=True)


def published_tensors(drafter: EagleDrafter) -> dict[str, Tensor]:
    """The drafter's tensors under their published names: the inverse of what `load_published` does."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in drafter.state_dict().items():
        tensors.update(_unfuse(name, tensor, drafter.shape))
    return tensors


def _fuse(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> names of our drafters."""
    state = dict(tensors)
    for layer in range(count_layers(tensors)):
        for fused, parts in FUSED.items():
            block, name = fused.split(".")
            for kind in ("weight", "bias"):
                sources = [f"layers.{layer}.{block}.{part}.{kind}" for part in parts]
                if all(source in state for source in sources):
                    state[f"layers.{layer}.{name}.{kind}"] = torch.cat([state.pop(source) for source in sources])
    return {_bare_name(name): tensor for name, tensor in state.items()}


def _bare_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    name = stem if NORM.search(stem) else name
    return re.sub(r"\.(self_attn|mlp)\.", ".", name)


def _unfuse(name: str, tensor: Tensor, shape: EagleShape) -> dict[str, Tensor]:
    """The published tensors that one of ours is made of."""
    match = re.match(r"(layers\.\d+)\.(\w+)(?:\.(weight|bias))?$", name)
    if match is None:
        return {f"{name}.weight" if NORM.search(name) else name: tensor}
    layer, part, kind = match[1], match[2], match[3] or "weight"
    if part == "qkv_proj":
        heads = (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)
        pieces = tensor.split([count * shape.head_dim for count in heads])
        return {f"{layer}.self_attn.{piece}_proj.{kind}": value for piece, value in zip("qkv", pieces, strict=True)}
    if part == "gate_up_proj":
        gate, up = tensor.chunk(2)
        return {f"{layer}.mlp.gate_proj.{kind}": gate, f"{layer}.mlp.up_proj.{kind}": up}
    blocks = {"o_proj": "self_attn.", "q_norm": "self_attn.", "k_norm": "self_attn.", "down_proj": "mlp."}
    return {f"{layer}.{blocks.get(part, '')}{part}.{kind}": tensor}
