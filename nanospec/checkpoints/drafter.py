"""Any draft in, the drafter that it is out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from nanospec.checkpoints.causal_lm import load_causal_lm_drafter
from nanospec.checkpoints.detect import Family, detect_family, normalise_names
from nanospec.checkpoints.eagle import build_eagle_drafter
from nanospec.checkpoints.eagle3 import build_eagle3_drafter
from nanospec.checkpoints.files import read_config, read_tensors, resolve_checkpoint
from nanospec.checkpoints.medusa import build_medusa_drafter
from nanospec.checkpoints.mtp import load_mtp_drafter, own_checkpoint
from nanospec.drafters.drafter import Drafter
from nanospec.drafters.mtp import NATIVE_MTP
from nanospec.target import Target
from nanospec.untrusted_files import shown_names

LOADED = ", ".join(family.value for family in Family if family != Family.UNKNOWN)


def load_drafter(
    path: str | Path,
    target: Target,
    feature_layers: Sequence[int] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Drafter:
    """The draft in `path` (directory or hub id) on the target's device and in its dtype; its tensors say what it is.
    "mtp" means the native MTP modules in the target's own checkpoint.

    feature_layers: for EAGLE-3, the layers of the target whose inputs it reads, where the config is wrong or silent.
    tokenizer: the target's, which a complete language model as draft must share.

    Raises FileNotFoundError; ValueError naming the tensor or key that is missing, unused, non-finite or does not match
    the target; NotImplementedError for a language model that could not be a target, and for angles that depend on the
    length of a request.
    """
    if path == NATIVE_MTP:
        family, directory = Family.MTP, own_checkpoint(target)
    else:
        directory = resolve_checkpoint(path, "draft")
        specs = normalise_names(read_tensors(directory, specs_only=True))
        family = detect_family(specs)
        if family == Family.UNKNOWN and (directory / "config.json").exists():
            family = detect_family(specs, read_config(directory))
    if feature_layers is not None and family != Family.EAGLE3:
        raise ValueError(f"feature_layers must be None for a draft that is not EAGLE-3, got {feature_layers}")
    if family == Family.CAUSAL_LM:
        return load_causal_lm_drafter(directory, target, tokenizer)
    if family == Family.MTP:
        return load_mtp_drafter(directory, target)
    if family == Family.UNKNOWN:
        raise ValueError(f"draft must be one of {LOADED}, got tensors {shown_names(specs)} in {directory}")
    tensors = normalise_names(read_tensors(directory))
    if family == Family.EAGLE3:
        return build_eagle3_drafter(directory, read_config(directory), tensors, target, feature_layers)
    if family == Family.EAGLE:
        return build_eagle_drafter(directory, read_config(directory), tensors, target)
    return build_medusa_drafter(directory, tensors, target)
