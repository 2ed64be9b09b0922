"""A complete causal language model as draft: loaded as a target is, and held against the target's tokenizer."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nanospec.checkpoints.files import resolve_checkpoint
from nanospec.checkpoints.target import load_language_model, load_model_skeleton, load_tokenizer
from nanospec.drafters.causal_lm import CausalLMDrafter
from nanospec.target import Target
from nanospec.untrusted_files import shown_name

MAX_PADDING = 1024  # ids by which two heads over one tokenizer may differ: their sizes are rounded up to some multiple


def load_causal_lm_drafter(
    path: str | Path, target: Target, tokenizer: PreTrainedTokenizerBase | None = None
) -> CausalLMDrafter:
    """The model in `path` (directory or hub id) on the target's device and in its dtype.

    tokenizer: the target's; without it, or without one beside the draft, only the numbers of ids are compared.

    Raises what `load_target` raises, here about the draft; ValueError for another tokenizer, naming the first token in
    which they differ; NotImplementedError for an architecture that could not be a target.
    """
    directory = resolve_checkpoint(path, "draft")
    model, own_tokenizer = load_language_model(directory, "draft", target.dtype, target.device)
    return _build_checked(model, own_tokenizer, target, tokenizer, directory)


def check_causal_lm_files(path: str | Path, target: Target, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Raises what `load_causal_lm_drafter` raises about architecture, sizes and tokenizer; no weights are read."""
    directory = resolve_checkpoint(path, "draft")
    model = load_model_skeleton(directory, "draft").to(target.dtype)
    _build_checked(model, load_tokenizer(directory), target, tokenizer, directory)


def build_causal_lm_drafter(model: PreTrainedModel, target: Target) -> CausalLMDrafter:
    """A drafter of a model in memory, whose tokenizer is not known.

    Raises ValueError where the numbers of ids differ by more than padding does; NotImplementedError as
    `CausalLMDrafter`.
    """
    drafter = CausalLMDrafter(model, target.vocab_size)
    num_ids = drafter.body.vocab_size
    if abs(num_ids - target.vocab_size) > MAX_PADDING:
        raise ValueError(
            f"draft must have the target's tokenizer: its head scores {num_ids} ids, the target's {target.vocab_size}, "
            f"and padding accounts for {MAX_PADDING} at most"
        )
    return drafter


def _build_checked(
    model: PreTrainedModel,
    own_tokenizer: PreTrainedTokenizerBase | None,
    target: Target,
    tokenizer: PreTrainedTokenizerBase | None,
    source: Path,
) -> CausalLMDrafter:
    if tokenizer is None or own_tokenizer is None:
        return build_causal_lm_drafter(model, target)
    check_same_tokens(tokenizer, own_tokenizer, source)
    return CausalLMDrafter(model, target.vocab_size)


def check_same_tokens(target: PreTrainedTokenizerBase, draft: PreTrainedTokenizerBase, source: Path | str) -> None:
    """ValueError naming the first id that stands for two tokens. An id that only one of them has is no difference:
    models of one family add tokens of their own at the end."""
    tokens, own_tokens = ({token_id: token for token, token_id in side.get_vocab().items()} for side in (target, draft))
    shared = sorted(tokens.keys() & own_tokens.keys())
    for token_id in shared:
        if tokens[token_id] != own_tokens[token_id]:
            raise ValueError(
                f"draft must have the target's tokenizer: id {token_id} is {shown_name(tokens[token_id])!r} in the "
                f"target and {shown_name(own_tokens[token_id])!r} in {source}"
            )
    if not shared:
        raise ValueError(f"draft must have the target's tokenizer, got one that shares no id with it in {source}")
