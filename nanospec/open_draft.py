"""Whatever names a draft for a target, as the `Drafter` that it means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nanospec.checkpoints.causal_lm import build_causal_lm_drafter
from nanospec.checkpoints.drafter import load_drafter
from nanospec.checkpoints.files import resolve_checkpoint
from nanospec.checkpoints.mtp import own_checkpoint
from nanospec.drafters.drafter import Drafter
from nanospec.drafters.mtp import NATIVE_MTP
from nanospec.drafters.prompt_lookup import PROMPT_LOOKUP, PromptLookupDrafter
from nanospec.target import Target
from nanospec.vocab.static_list import read_static_list

FREQUENT_IDS = "frequent_ids.safetensors"


def open_draft(
    draft: str | Path | PreTrainedModel | Drafter,
    target: Target,
    feature_layers: Sequence[int] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[Drafter, Tensor | None]:
    """The drafter, and the list of frequent ids int64 [N] that lies in its directory, None where there is none.

    draft  a path or hub id, a language model, a drafter, "prompt-lookup", which needs no weights, or "mtp": the modules
           in the target's own checkpoint

    Raises TypeError for anything else, and what `load_drafter` and `build_causal_lm_drafter` raise.
    """
    if draft == PROMPT_LOOKUP:
        return PromptLookupDrafter(target.device), None
    if isinstance(draft, str | Path):
        is_own = draft == NATIVE_MTP
        directory = own_checkpoint(target) if is_own else resolve_checkpoint(draft, "draft")
        drafter = load_drafter(NATIVE_MTP if is_own else directory, target, feature_layers, tokenizer)
        path = directory / FREQUENT_IDS
        return drafter, read_static_list(path, target.vocab_size) if path.exists() else None
    if isinstance(draft, PreTrainedModel):
        return build_causal_lm_drafter(draft, target), None
    if isinstance(draft, Drafter):
        return draft, None
    raise TypeError(f"draft must be a path, a hub id, a model or a Drafter, got {type(draft).__name__}")
