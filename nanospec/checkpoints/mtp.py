"""Native MTP modules, read from the target's own checkpoint or from a directory that holds the same tensors.

    DeepSeek-V3, GLM-4-MoE                 Mellum                              shape
    layers.{L+i}.enorm.weight              mtp.pre_fc_norm_embedding.weight    [D]
    layers.{L+i}.hnorm.weight              mtp.pre_fc_norm_hidden.weight       [D]
    layers.{L+i}.eh_proj.weight            mtp.fc.weight                       [D, 2 D]
    layers.{L+i}.shared_head.norm.weight   mtp.norm.weight                     [D]
    layers.{L+i}.{self_attn, mlp, ..}      mtp.layers.0.{self_attn, mlp, ..}   a decoder layer like the target's
    layers.{L+i}.embed_tokens.weight                                           [V, D], may be absent
    layers.{L+i}.shared_head.head.weight                                       [V, D], may be absent

L is the number of the target's layers, i counts the modules. A stored embedding or head that equals the target's is
left out. Experts are stored one by one and stacked here: gate and up projections [E, 2 I, D], down ones [E, D, I].
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from nanospec.checkpoints.detect import Family, detect_family, normalise_name, normalise_names
from nanospec.checkpoints.files import check_weights, name_difference, read_tensors, resolve_checkpoint
from nanospec.drafters.mtp import NATIVE_MTP, MtpDrafter
from nanospec.target import Target
from nanospec.untrusted_files import shown_name, shown_names

EMBEDDING, HEAD = "embed_tokens.weight", "shared_head.head.weight"
# Beginnings of names in a module of ours -> those of the first column, and of the second.
APPENDED = {"post_norm.": "shared_head.norm.", "mtp_block.": ""}
BESIDE = {
    "enorm.": "pre_fc_norm_embedding.", "hnorm.": "pre_fc_norm_hidden.", "eh_proj.": "fc.", "post_norm.": "norm.",
    "mtp_block.": "layers.0.",
}  # fmt: skip
EXPERTS = {"experts.gate_up_proj": ("gate_proj", "up_proj"), "experts.down_proj": ("down_proj",)}


def own_checkpoint(target: Target) -> Path:
    """The directory that the target was read from, of a hub id at the target's own commit. ValueError for one that was
    made in memory."""
    config = target.model.config
    source = config.name_or_path
    if not source:
        raise ValueError(f"draft {NATIVE_MTP!r} needs a target that was read from a checkpoint, got one made in memory")
    return resolve_checkpoint(source, "target", revision=getattr(config, "_commit_hash", None))


def load_mtp_drafter(path: str | Path, target: Target) -> MtpDrafter:
    """The MTP modules in `path` (directory or hub id; "mtp": the target's own checkpoint) on the target's device and in
    its dtype. Of a language model nothing else is read.

    Raises FileNotFoundError; ValueError where there are no modules, or another number than the target's config says,
    and naming the tensors that are missing or unused, or the one that is non-finite, of the wrong kind or shape;
    NotImplementedError as `MtpDrafter`, and for modules whose embeddings or heads differ from each other.
    """
    directory = own_checkpoint(target) if path == NATIVE_MTP else resolve_checkpoint(path, "draft")
    tensors, unused = _read_modules(directory, target.config.num_hidden_layers)
    layers = {int(name.split(".")[1]) for name in tensors if name.startswith("layers.")}
    num_modules = len(layers) or 1
    if not tensors:
        raise ValueError(
            f"draft must be native MTP modules, numbered on from the target's {target.config.num_hidden_layers} layers "
            f"or named 'mtp.', got none in {directory}"
        )
    check_weights(tensors, directory)
    shared_embedding = target.embed_tokens.weight
    assert isinstance(shared_embedding, Tensor), "an embedding has a weight [V, D]"
    embedding = _own_part(EMBEDDING, shared_embedding, tensors, num_modules)
    head = _own_part(HEAD, target.head_weight, tensors, num_modules)
    with torch.device("meta"):  # sizes that a config only claims cost nothing
        drafter = MtpDrafter(target, num_modules, embedding is not None, head is not None)
    modules = _modules_from(tensors, unused, drafter, target, directory)
    parts = {"embed_tokens.weight": embedding, "lm_head.weight": head}
    own = {name: part.to(target.dtype) for name, part in parts.items() if part is not None}
    drafter.load_state_dict(modules | own, assign=True)
    return drafter.to(target.device).eval().requires_grad_(False)


def is_mtp_name(name: str, num_layers: int) -> bool:
    """Whether a tensor (normalised name) belongs to the MTP modules of a target with `num_layers` layers."""
    layer = re.match(r"layers\.(\d+)\.", name)
    return name.startswith("mtp.") or (layer is not None and int(layer[1]) >= num_layers)


def _read_modules(directory: Path, num_layers: int) -> tuple[dict[str, Tensor], set[str]]:
    """The tensors of the modules under normalised names; names of others where they should be alone."""
    specs = normalise_names(read_tensors(directory, specs_only=True))
    others = {name for name in specs if not is_mtp_name(name, num_layers)}
    tensors = read_tensors(directory, wanted=lambda name: is_mtp_name(normalise_name(name), num_layers))
    return normalise_names(tensors), others if detect_family(specs) == Family.MTP else set()


def _own_part(name: str, shared: Tensor, tensors: dict[str, Tensor], num_modules: int) -> Tensor | None:
    """Takes the modules' embedding or head out of `tensors`; None where it is the target's, `shared`, or not stored.

    A target without numbers (meta) counts as equal.
    """
    stored = {key: tensors.pop(key) for key in sorted(tensors) if re.fullmatch(rf"layers\.\d+\.{re.escape(name)}", key)}
    for key, tensor in stored.items():
        if tensor.shape != shared.shape:
            raise ValueError(
                f"draft tensor {shown_name(key)!r} must have shape {tuple(shared.shape)}, got {tuple(tensor.shape)}"
            )
    if shared.is_meta:
        return None
    own = [part for part in stored.values() if not torch.equal(part.to(shared.device, shared.dtype), shared)]
    if own and (len(own) < num_modules or any(not torch.equal(part, own[0]) for part in own)):
        raise NotImplementedError(
            f"MTP modules must all have the same {name}, got different ones in {shown_names(stored)}"
        )
    return own[0] if own else None


def _modules_from(
    tensors: Mapping[str, Tensor], unused: set[str], drafter: MtpDrafter, target: Target, directory: Path
) -> dict[str, Tensor]:
    """State of the drafter's modules, in the target's dtype; `unused` joins what else is left over in the error."""
    expected = {name: tensor for name, tensor in drafter.state_dict().items() if name.startswith("layers.")}
    is_beside = all(name.startswith("mtp.") for name in tensors)
    first_layer = None if is_beside else target.config.num_hidden_layers
    sources = {name: _sources(name, tensor.shape, first_layer) for name, tensor in expected.items()}
    shapes = {source: shape for names, shape in sources.values() for source in names}
    missing, unused = shapes.keys() - tensors.keys(), unused | (tensors.keys() - shapes.keys())
    if missing or unused:
        raise ValueError(f"draft {directory} must be {Family.MTP}: {name_difference(missing, unused)}")
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise ValueError(f"draft tensor {name!r} must have shape {shape}, got {tuple(tensors[name].shape)}")
    kept_wide = getattr(target.model, "_keep_in_fp32_modules_strict", None) or ()
    wide = torch.promote_types(target.dtype, torch.float32)
    return {
        name: torch.stack([tensors[source] for source in names])
        .view(expected[name].shape)
        .to(wide if any(part in name for part in kept_wide) else target.dtype)
        for name, (names, _) in sources.items()
    }


def _sources(name: str, size: torch.Size, first_layer: int | None) -> tuple[list[str], tuple[int, ...]]:
    """The published tensors that one of ours, layers.{i}.{rest}, is made of, in order, and the shape of each.

    first_layer: the number of the first module; None where they are named as in the second column.
    """
    _, index, rest = name.split(".", 2)
    prefix, renamed = ("mtp.", BESIDE) if first_layer is None else (f"layers.{first_layer + int(index)}.", APPENDED)
    for ours, published in renamed.items():
        if rest.startswith(ours):
            rest = published + rest.removeprefix(ours)
            break
    for stacked, kinds in EXPERTS.items():
        if rest.endswith(stacked):
            experts = prefix + rest.removesuffix(stacked) + "experts"
            names = [f"{experts}.{expert}.{kind}.weight" for expert in range(size[0]) for kind in kinds]
            return names, (size[1] // len(kinds), size[2])
    return [prefix + rest], tuple(size)
