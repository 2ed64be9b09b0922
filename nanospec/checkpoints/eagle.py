"""EAGLE-1/2 checkpoints: names as published by SafeAILab, read strictly, optional parts decided by the tensors.

fc.weight [D, 2D], fc.bias [D] (optional), layers.i.self_attn.{q,k,v,o}_proj.weight (+ .bias on q, k, v),
layers.i.mlp.{gate,up,down}_proj.weight, layers.i.post_attention_layernorm.weight,
layers.i.input_layernorm.weight for i > 0, embed_tokens.weight (stored, never trained: the target's is used)
HASS, and speculators before 0.4, may add embed_layernorm, layers.0.input_layernorm and lm_head_layernorm.
A trimmed draft (see `trim`) has rows of the target's head as its own, and says of which ids: lm_head.weight [N, D] with
d2t int64 [N] or t2d bool [V], as EAGLE-3 has them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from nanospec.checkpoints.detect import Family, normalise_names
from nanospec.checkpoints.draft_config import layer_settings, read_shape, rope_config
from nanospec.checkpoints.draft_vocab_map import MAPS, read_vocab_map
from nanospec.checkpoints.files import check_weights, read_config, read_tensors, resolve_checkpoint
from nanospec.checkpoints.published_names import load_published, published_tensors
from nanospec.drafters.eagle import EagleDrafter
from nanospec.gathered_head import GatheredHead
from nanospec.target import Target
from nanospec.untrusted_files import shown_names


def load_eagle_drafter(path: str | Path, target: Target) -> EagleDrafter:
    """The drafter in `path` (directory or hub id) on the target's device and in its dtype.

    Raises FileNotFoundError, or ValueError naming the tensor or key that is missing, unused, non-finite or does not
    match the target.
    """
    directory = resolve_checkpoint(path, "draft")
    return build_eagle_drafter(directory, read_config(directory), normalise_names(read_tensors(directory)), target)


def build_eagle_drafter(
    directory: Path, config: dict[str, Any], tensors: dict[str, Tensor], target: Target
) -> EagleDrafter:
    """The drafter made of `tensors` under normalised names; raises as `load_eagle_drafter`."""
    settings, tensors = layer_settings(config), dict(tensors)
    maps = {name: tensors.pop(name) for name in MAPS if name in tensors}
    if maps and "lm_head.weight" not in tensors:
        raise ValueError(f"draft must hold 'lm_head.weight' because it holds {sorted(maps)}, got none in {directory}")
    check_weights(tensors, directory)
    _check_against_target(settings, tensors, target, directory)
    shape = read_shape(settings, tensors, directory)
    head: GatheredHead | int = GatheredHead(target.head_weight, target.head_bias)
    target_ids = None
    if maps:
        head = tensors["lm_head.weight"].shape[0]
        target_ids = read_vocab_map(maps.get("d2t"), maps.get("t2d"), head, target.vocab_size)
    rope = rope_config(settings, shape, target.context_window)
    with torch.device("meta"):  # sizes that a config only claims cost nothing
        drafter = EagleDrafter(shape, rope, target.embed_tokens, head, target_ids)
    load_published(drafter, tensors, directory, Family.EAGLE)
    return drafter.to(device=target.device, dtype=target.dtype).eval().requires_grad_(False)


def save_eagle_drafter(drafter: EagleDrafter, directory: Path, config: dict[str, Any]) -> None:
    """Writes model.safetensors and config.json in the published layout, without the embeddings."""
    write_checkpoint(directory, published_tensors(drafter), config)


def write_checkpoint(directory: str | Path, tensors: Mapping[str, Tensor], config: dict[str, Any]) -> None:
    """Writes model.safetensors and config.json into `directory`, which need not exist. Tensors that share memory are
    written each as its own."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(_apart(tensors), directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous, and none on memory of another: safetensors writes no others."""
    apart = {name: tensor.contiguous() for name, tensor in tensors.items()}
    end = 0
    for name, tensor in sorted(apart.items(), key=lambda item: item[1].data_ptr()):
        begin, length = tensor.data_ptr(), tensor.nbytes
        apart[name] = tensor.clone() if begin < end else tensor
        end = max(end, begin + length)
    return apart


def _check_against_target(
    settings: dict[str, Any], tensors: dict[str, Tensor], target: Target, directory: Path
) -> None:
    hidden_size = target.head_weight.shape[1]
    if "fc.weight" not in tensors:
        raise ValueError(f"draft must be EAGLE-1/2 and hold 'fc.weight', got {shown_names(tensors)} in {directory}")
    expected = (hidden_size, 2 * hidden_size)
    if tuple(tensors["fc.weight"].shape) != expected:
        raise ValueError(
            f"draft fc.weight must be {expected} for a target of hidden size {hidden_size}, "
            f"got {tuple(tensors['fc.weight'].shape)}"
        )
    embedding = tensors.pop("embed_tokens.weight", None)
    vocab_size = settings.get("vocab_size", target.vocab_size) if embedding is None else embedding.shape[0]
    if vocab_size != target.vocab_size:
        raise ValueError(f"draft vocabulary must be the target's {target.vocab_size} ids, got {vocab_size}")
