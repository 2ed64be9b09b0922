"""A text to measure on as tokens, and the places where it is cut; a response that is missing the target generates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nanospec.checkpoints.tokenizer import encode_prompt

if TYPE_CHECKING:
    from nanospec.decode import SpeculativeDecoder


class TextDocument(NamedTuple):
    """A prompt, its response where there is one, and the task that it counts for. With a response the prompt may be
    empty."""

    prompt: str
    response: str | None
    task: str


class Document(NamedTuple):
    """token_ids int64 [1, n]: prompt and response; first: number of prompt tokens."""

    token_ids: Tensor
    first: int


def as_tokens(decoder: SpeculativeDecoder, document: TextDocument, max_new_tokens: int, seed: int) -> Document | None:
    """The document as the decoder reads it, cut where the context window leaves no room for a tree; None for a prompt
    that reaches as far. A response that is missing is generated at temperature 1 with `seed`.

    Raises ValueError without a tokenizer.
    """
    prompt, room = _prompt_ids(decoder, document), decoder.target.context_window - decoder.tree.depth - 2
    if len(prompt) >= room:
        return None
    if document.response is None:
        generated = decoder.generate(prompt, max_new_tokens=max_new_tokens, temperature=1.0, seed=seed)
        response = generated.token_ids
    else:
        response = response_ids(decoder, document.response)
    token_ids = torch.tensor([(prompt + response)[:room]], dtype=torch.int64, device=decoder.target.device)
    return Document(token_ids, len(prompt))


def response_ids(decoder: SpeculativeDecoder, text: str) -> list[int]:
    """Token ids of text that continues a prompt. Raises ValueError without a tokenizer."""
    return _tokenizer_of(decoder)(text, add_special_tokens=False)["input_ids"]


def _prompt_ids(decoder: SpeculativeDecoder, document: TextDocument) -> list[int]:
    """Also of no text at all, which is a prompt that the record does not tell."""
    return encode_prompt(_tokenizer_of(decoder), document.prompt)


def _tokenizer_of(decoder: SpeculativeDecoder) -> PreTrainedTokenizerBase:
    if decoder.tokenizer is None:
        raise ValueError("target must come with a tokenizer to read text, got none")
    return decoder.tokenizer


def draw_cuts(document: Document, num_cuts: int, seed: Sequence[int]) -> list[int]:
    """Up to `num_cuts` distinct places of the response at random, ascending: numbers of tokens before the cut. The
    first place is before the response, the last before its last token."""
    places = np.arange(max(document.first, 1), document.token_ids.shape[1])
    drawn = np.random.default_rng(list(seed)).permutation(places)[:num_cuts]
    return sorted(int(cut) for cut in drawn)
