"""What a directory holds, told without reading its weights, and whether it drafts for a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nanospec.checkpoints.causal_lm import check_causal_lm_files
from nanospec.checkpoints.detect import (
    MTP_MODULE,
    Family,
    count_layers,
    count_medusa_heads,
    count_mtp_modules,
    detect_family,
    normalise_names,
)
from nanospec.checkpoints.draft_config import layer_settings
from nanospec.checkpoints.drafter import load_drafter
from nanospec.checkpoints.eagle3 import AUX_LAYERS
from nanospec.checkpoints.files import read_config, read_tensors, resolve_checkpoint
from nanospec.checkpoints.mtp import is_mtp_name
from nanospec.checkpoints.target import load_target_skeleton, load_tokenizer
from nanospec.drafters.eagle3 import Eagle3Drafter
from nanospec.drafters.mtp import NATIVE_MTP
from nanospec.target import Target
from nanospec.untrusted_files import shown_names

OPTIONAL_PARTS = {
    "fc.bias": "fc.bias",
    "embed_tokens.weight": "embedding",
    "lm_head.weight": "head",
    "d2t": "d2t",
    "t2d": "t2d",
    "fc_norm.0.weight": "norm per feature",
    "input_norm.weight": "norm over all features",
    "embed_layernorm.weight": "norm of the embedding",
    "lm_head_layernorm.weight": "norm before the head",
    "layers.0.self_attn.q_proj.bias": "attention biases",
    "layers.0.self_attn.q_norm.weight": "norms of queries and keys",
}
SWITCHES = ("norm_before_residual", "norm_output")


@dataclass(frozen=True)
class CheckpointDescription:
    """What a checkpoint is. None: not told by its files, or not a matter of its family.

    family          by the tensors; architectures: what the config claims
    layout          "speculators <version>", or "published"
    num_mtp_modules native MTP modules: a draft of their own, or inside a language model that they draft for
    vocab_size      ids of the target; draft_vocab_size: rows of the draft's own head
    feature_layers  layers of the target whose inputs an EAGLE-3 draft reads: the config's own words, or with a target
                    the layers that will be read
    optional_parts  what not every checkpoint of the family has
    problems        why it cannot be used, empty if nothing was found
    """

    path: str
    family: str
    layout: str
    architectures: list[str] | None
    num_layers: int
    hidden_size: int | None
    intermediate_size: int | None
    num_heads: int | None
    num_kv_heads: int | None
    vocab_size: int | None
    draft_vocab_size: int | None
    num_medusa_heads: int | None
    num_mtp_modules: int | None
    dtypes: list[str]
    num_parameters: int
    feature_layers: list[int] | str | None
    rope_theta: float | None
    optional_parts: list[str]
    problems: list[str]


def describe_checkpoint(path: str | Path, target: str | Path | None = None) -> CheckpointDescription:
    """The checkpoint in `path` (directory or hub id; "mtp": the native MTP modules in the target's own). With a
    `target`, the draft is also read and checked against that target's shapes exactly as for decoding, without the
    target's weights. A language model is checked by its config and tokenizer, without its own weights too.

    Raises FileNotFoundError for what is not there, ValueError for files that cannot be read and for "mtp" without a
    target, NotImplementedError for a target that cannot be used.
    """
    is_own = path == NATIVE_MTP
    if is_own and target is None:
        raise ValueError(f"target must be given with {NATIVE_MTP!r}, which means modules in its checkpoint, got None")
    directory = resolve_checkpoint(target if is_own and target is not None else path, "target" if is_own else "path")
    tensors = normalise_names(read_tensors(directory, specs_only=True))
    problems: list[str] = []
    try:
        config = read_config(directory)
    except FileNotFoundError as error:
        config, problems = {}, [str(error)]
    family = Family.MTP if is_own else detect_family(tensors, config)
    if is_own:
        num_layers = count_layers(tensors)
        tensors = {name: tensor for name, tensor in tensors.items() if is_mtp_name(name, num_layers)}
    if family == Family.UNKNOWN:
        problems.append(f"its tensors are of no known family: {shown_names(tensors)}")
    feature_layers: list[int] | str | None = (
        _feature_layers(layer_settings(config)) if family == Family.EAGLE3 else None
    )
    if target is not None and not problems:
        skeleton, tokenizer = load_target_skeleton(target), load_tokenizer(resolve_checkpoint(target, "target"))
        try:
            feature_layers = _check_draft(NATIVE_MTP if is_own else directory, family, skeleton, tokenizer)
        except (ValueError, NotImplementedError) as error:
            problems.append(str(error))
    return _describe(str(path), family, config, tensors, feature_layers, problems)


def _check_draft(
    path: str | Path, family: Family, target: Target, tokenizer: PreTrainedTokenizerBase | None
) -> list[int] | None:
    """The layers that an EAGLE-3 draft will read. Raises what loading a draft of the family raises."""
    if family == Family.CAUSAL_LM:
        check_causal_lm_files(path, target, tokenizer)
        return None
    drafter = load_drafter(path, target)
    return list(drafter.feature_layers) if isinstance(drafter, Eagle3Drafter) else None


def _describe(
    path: str,
    family: Family,
    config: dict[str, Any],
    tensors: Mapping[str, Tensor],
    feature_layers: list[int] | str | None,
    problems: list[str],
) -> CheckpointDescription:
    settings = layer_settings(config)
    is_draft = family in (Family.EAGLE, Family.EAGLE3)
    optional = [label for name, label in OPTIONAL_PARTS.items() if name in tensors] if is_draft else []
    optional += [switch for switch in SWITCHES if settings.get(switch) is True]
    rope = settings.get("rope_parameters")
    theta = rope.get("rope_theta") if isinstance(rope, dict) else settings.get("rope_theta")
    return CheckpointDescription(
        path=path,
        family=family.value,
        layout=f"speculators {config.get('speculators_version', '')}".strip()
        if "speculators_model_type" in config
        else "published",
        architectures=config.get("architectures"),
        num_layers=count_layers(tensors),
        hidden_size=_size(
            tensors, 0, "fc.weight", "norm.weight", "0.0.linear.weight", *filter(MTP_MODULE.match, tensors)
        ),
        intermediate_size=_size(tensors, 0, "layers.0.mlp.gate_proj.weight"),
        num_heads=settings.get("num_attention_heads"),
        num_kv_heads=settings.get("num_key_value_heads"),
        vocab_size=_size(tensors, 0, "t2d", "embed_tokens.weight") or settings.get("vocab_size"),
        draft_vocab_size=_size(tensors, 0, "lm_head.weight", "d2t") if is_draft else None,
        num_medusa_heads=count_medusa_heads(tensors) if family == Family.MEDUSA else None,
        num_mtp_modules=count_mtp_modules(tensors) or None,
        dtypes=sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}),
        num_parameters=sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point()),
        feature_layers=feature_layers,
        rope_theta=float(theta) if isinstance(theta, int | float) else (10000.0 if is_draft else None),
        optional_parts=optional,
        problems=problems,
    )


def _feature_layers(settings: dict[str, Any]) -> str:
    """The config's own words on the layers, and what they count."""
    own, nested = settings.get(AUX_LAYERS), settings.get("eagle_config")
    outputs = nested.get(AUX_LAYERS) if isinstance(nested, dict) else None
    if own is not None:
        return f"inputs of {own}"
    return "inputs of 2, L // 2, L - 3 (default)" if outputs is None else f"outputs of {outputs}"


def _size(tensors: Mapping[str, Tensor], dim: int, *names: str) -> int | None:
    """Size of the first of the tensors that is there."""
    return next((tensors[name].shape[dim] for name in names if name in tensors and tensors[name].dim() > dim), None)
