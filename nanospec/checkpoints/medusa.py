"""Medusa checkpoints: heads counted from the tensors, read strictly; published configs state wrong numbers of heads.

    FasterDecoding            vLLM                           shape
    {h}.{l}.linear.weight     blocks.{h}.layers.{l}.weight   [D, D]   ResBlock l < L of head h
    {h}.{l}.linear.bias       blocks.{h}.layers.{l}.bias     [D]      all or none
    {h}.{L}.weight            lm_heads.{h}.weight            [V, D]   output rows of head h
                              token_map                      [R]      the ids that the output rows score

One `lm_head.weight`, or `lm_heads.0.weight` where the config says `original_lm_head`, serves all heads. Files without
output rows (text-generation-inference) mean the target's own head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from nanospec.checkpoints.detect import normalise_names
from nanospec.checkpoints.files import check_weights, name_difference, read_config, read_tensors, resolve_checkpoint
from nanospec.drafters.medusa import MedusaDrafter, MedusaShape
from nanospec.gathered_head import GatheredHead
from nanospec.target import Target
from nanospec.untrusted_files import shown_names

TOKEN_MAP, SHARED = "token_map", "lm_head.weight"
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


class _Naming(NamedTuple):
    """How a tool names the tensors of head h and layer l; a pattern's first group is h, its second l."""

    block: re.Pattern[str]
    output: re.Pattern[str]
    block_form: str
    output_form: str


PUBLISHED = _Naming(
    re.compile(r"(\d+)\.(\d+)\.linear\.(weight|bias)"),
    re.compile(r"(\d+)\.\d+\.weight"),
    "{head}.{layer}.linear.{kind}",
    "{head}.{num_layers}.weight",
)
VLLM = _Naming(
    re.compile(r"blocks\.(\d+)\.layers\.(\d+)\.(weight|bias)"),
    re.compile(r"lm_heads\.(\d+)\.weight"),
    "blocks.{head}.layers.{layer}.{kind}",
    "lm_heads.{head}.weight",
)


class _Layout(NamedTuple):
    """The names that a file should hold: blocks[layer][head], biases likewise or None, outputs: none, one or one per
    head."""

    blocks: list[list[str]]
    biases: list[list[str]] | None
    outputs: list[str]

    def names(self) -> set[str]:
        rows = self.blocks + (self.biases or [])
        return {name for row in rows for name in row} | set(self.outputs)


def load_medusa_drafter(path: str | Path, target: Target) -> MedusaDrafter:
    """The Medusa heads in `path` (directory or hub id) on the target's device and in its dtype; no config is needed.

    Raises FileNotFoundError, or ValueError naming the tensors that are missing or unused, or the one that is
    non-finite, of the wrong kind or does not match the target.
    """
    directory = resolve_checkpoint(path, "draft")
    return build_medusa_drafter(directory, normalise_names(read_tensors(directory)), target)


def build_medusa_drafter(directory: Path, tensors: Mapping[str, Tensor], target: Target) -> MedusaDrafter:
    """The drafter made of `tensors` under normalised names; raises as `load_medusa_drafter`."""
    weights = {name: tensor for name, tensor in tensors.items() if name != TOKEN_MAP}
    check_weights(weights, directory)
    layout = _read_layout(weights, directory)
    token_map = tensors.get(TOKEN_MAP) if layout.outputs else None
    if difference := name_difference(
        layout.names() | ({TOKEN_MAP} if token_map is not None else set()), tensors.keys()
    ):
        raise ValueError(f"draft {directory} must be Medusa: {difference}")
    if token_map is not None:
        token_map = _checked_map(token_map, target.vocab_size)
    shape = _read_shape(layout, weights, token_map, target)
    if token_map is not None and shape.num_rows != token_map.shape[0]:
        token_map = None  # rows of all ids: none of them needs to be left out
    drafter = MedusaDrafter(shape, GatheredHead(target.head_weight, target.head_bias), token_map)
    drafter.load_state_dict(_stacked(layout, weights, shape))
    return drafter.to(device=target.device, dtype=target.dtype).eval().requires_grad_(False)


def _read_layout(tensors: Mapping[str, Tensor], directory: Path) -> _Layout:
    """Heads and layers are as many as there are distinct indices; indices that leave gaps then show as missing."""
    is_vllm = any(VLLM.block.fullmatch(name) or VLLM.output.fullmatch(name) for name in tensors)
    naming = VLLM if is_vllm else PUBLISHED
    parts = [match.groups() for name in tensors if (match := naming.block.fullmatch(name))]
    own_outputs = {match[1] for name in tensors if (match := naming.output.fullmatch(name))}
    heads, num_layers = {head for head, _, _ in parts} | own_outputs, len({layer for _, layer, _ in parts})
    if not heads:
        raise ValueError(f"draft must hold Medusa heads, got tensors {shown_names(tensors)} in {directory}")
    if len(heads) * num_layers > 2 * len(tensors):  # before as many names are made
        raise ValueError(
            f"draft {directory} must hold a block per head and layer, got {len(tensors)} tensors of {len(heads)} heads "
            f"and {num_layers} layers"
        )

    def names(kind: str) -> list[list[str]]:
        return [
            [naming.block_form.format(head=head, layer=layer, kind=kind) for head in range(len(heads))]
            for layer in range(num_layers)
        ]

    outputs = [naming.output_form.format(head=head, num_layers=num_layers) for head in range(len(heads))]
    if not own_outputs:
        outputs = [SHARED] if SHARED in tensors else []
    elif is_vllm and own_outputs == {"0"} and _says_shared(directory):
        outputs = outputs[:1]
    has_bias = any(kind == "bias" for _, _, kind in parts)
    return _Layout(names("weight"), names("bias") if has_bias else None, outputs)


def _says_shared(directory: Path) -> bool:
    """Whether one head is stored because there is one, and not because the others are missing."""
    has_config = (directory / "config.json").exists()
    return has_config and read_config(directory).get("original_lm_head") is True


def _checked_map(token_map: Tensor, vocab_size: int) -> Tensor:
    if token_map.dtype not in _INTEGERS:
        raise ValueError(f"draft token_map must hold integers, got {token_map.dtype}")
    if token_map.dim() != 1 or token_map.numel() == 0:
        raise ValueError(f"draft token_map must be 1-D and not empty, got shape {tuple(token_map.shape)}")
    ids = token_map.long()
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if outside.numel():
        raise ValueError(f"draft token_map must hold ids between 0 and {vocab_size - 1}, got {int(outside[0])}")
    if ids.unique().shape != ids.shape:
        raise ValueError(f"draft token_map must hold distinct ids, got {ids.shape[0] - len(ids.unique())} repetitions")
    return ids


def _read_shape(
    layout: _Layout, tensors: Mapping[str, Tensor], token_map: Tensor | None, target: Target
) -> MedusaShape:
    """Sizes, all tensors checked against them. Raises ValueError naming the first tensor of another shape."""
    vocab_size, width = target.head_weight.shape
    num_rows = vocab_size
    if token_map is not None and tensors[layout.outputs[0]].shape[:1] != (vocab_size,):
        num_rows = token_map.shape[0]
    expected: dict[str, tuple[int, ...]] = dict.fromkeys(layout.outputs, (num_rows, width))
    expected.update({name: (width, width) for row in layout.blocks for name in row})
    expected.update({name: (width,) for row in layout.biases or [] for name in row})
    for name, size in expected.items():
        if tuple(tensors[name].shape) != size:
            raise ValueError(
                f"draft tensor {name!r} must have shape {size} for a target of hidden size {width} and {vocab_size} "
                f"ids, got {tuple(tensors[name].shape)}"
            )
    num_heads = len(layout.blocks[0]) if layout.blocks else len(layout.outputs)
    return MedusaShape(width, num_heads, len(layout.blocks), len(layout.outputs), num_rows, layout.biases is not None)


def _stacked(layout: _Layout, tensors: Mapping[str, Tensor], shape: MedusaShape) -> dict[str, Tensor]:
    """Published names -> names of the drafter, the heads of a layer stacked."""
    sizes = (shape.num_layers, shape.num_heads, shape.hidden_size)
    rows = {"blocks": layout.blocks, "biases": layout.biases}
    state = {
        name: torch.cat([tensors[stored] for row in names for stored in row] or [torch.empty(0)]).view(
            *sizes, *([shape.hidden_size] if name == "blocks" else [])
        )
        for name, names in rows.items()
        if names is not None
    }
    state.update({f"outputs.{index}": tensors[name] for index, name in enumerate(layout.outputs)})
    return state


def published_heads(drafter: MedusaDrafter) -> dict[str, Tensor]:
    """The drafter's tensors under FasterDecoding's names: the inverse of `build_medusa_drafter`.

    Raises ValueError for output rows that fewer than all heads own, or a token map: that layout has no name for either.
    """
    shape = drafter.shape
    if shape.num_outputs not in (0, shape.num_heads) or drafter.token_map is not None:
        raise ValueError(
            f"drafter must have output rows of all ids in every head or in none, got {shape.num_outputs} "
            f"matrices of {shape.num_rows} rows for {shape.num_heads} heads"
        )
    tensors = {}
    for head in range(shape.num_heads):
        for layer in range(shape.num_layers):
            name = f"{head}.{layer}.linear"
            tensors[f"{name}.weight"] = drafter.blocks[layer, head]
            if drafter.biases is not None:
                tensors[f"{name}.bias"] = drafter.biases[layer, head]
        if shape.num_outputs:
            tensors[f"{head}.{shape.num_layers}.weight"] = drafter.outputs[head]
    return {name: tensor.detach() for name, tensor in tensors.items()}
