"""Any draft in, the drafter that it is out."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from nanospec.checkpoints.causal_lm import load_causal_lm_drafter
from nanospec.checkpoints.detect import Family, detect_family, normalise_names
from nanospec.checkpoints.eagle import load_eagle_drafter
from nanospec.checkpoints.files import read_tensors, resolve_checkpoint
from nanospec.drafters.causal_lm import CausalLMDrafter
from nanospec.drafters.eagle import EagleDrafter
from nanospec.target import Target


def load_drafter(
    path: str | Path, target: Target, tokenizer: PreTrainedTokenizerBase | None = None
) -> EagleDrafter | CausalLMDrafter:
    """The draft in `path` (directory or hub id) on the target's device and in its dtype; its tensors say what it is.

    tokenizer: the target's, which a complete language model as draft must share.

    Raises FileNotFoundError; ValueError naming what is missing, unused, non-finite or does not match the target.
    """
    directory = resolve_checkpoint(path, "draft")
    if detect_family(normalise_names(read_tensors(directory))) == Family.CAUSAL_LM:
        return load_causal_lm_drafter(directory, target, tokenizer)
    return load_eagle_drafter(directory, target)
