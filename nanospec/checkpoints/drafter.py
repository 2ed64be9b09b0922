"""Any draft in, the drafter that it is out."""

from __future__ import annotations

from pathlib import Path

from nanospec.checkpoints.detect import Family, detect_family, normalise_names
from nanospec.checkpoints.eagle import build_eagle_drafter
from nanospec.checkpoints.files import read_config, read_tensors, resolve_checkpoint
from nanospec.drafters.eagle import EagleDrafter
from nanospec.target import Target


def load_drafter(path: str | Path, target: Target) -> EagleDrafter:
    """The draft in `path` (directory or hub id) on the target's device and in its dtype; its tensors say what it is.

    Raises FileNotFoundError; ValueError naming the tensor or key that is missing, unused, non-finite or does not match
    the target; NotImplementedError for a family that is known but cannot draft here.
    """
    directory = resolve_checkpoint(path, "draft")
    tensors = normalise_names(read_tensors(directory))
    family = detect_family(tensors)
    if family == Family.EAGLE:
        return build_eagle_drafter(directory, read_config(directory), tensors, target)
    if family == Family.UNKNOWN:
        raise ValueError(f"draft must be EAGLE-1/2, got tensors {sorted(tensors)[:8]} in {directory}")
    raise NotImplementedError(f"draft must be EAGLE-1/2, got {family.value} in {directory}")
