"""Conversations glued from two domains, and the places around the change where a speculative step is measured."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nanospec.checkpoints.tokenizer import encode_prompt
from nanospec.coverage.documents import TextDocument

# Tokens since the change: first of each bin, end of the last. Below 0: before the end of the old domain's response.
EDGES = (-64, -32, 0, 8, 16, 32, 48, 64, 96, 128, 192, 256)
PARAGRAPH = "\n\n"


class Domain(NamedTuple):
    """Documents of a category whose prompt holds `words`: "code", or "translation:to German"."""

    name: str
    documents: list[TextDocument]


class Switch(NamedTuple):
    """token_ids int64 [1, n]: a conversation; cuts: of every bin one place, so many tokens before it."""

    token_ids: Tensor
    cuts: dict[int, int]


def find_domain(name: str, documents: Sequence[TextDocument]) -> Domain:
    """The documents with prompt and response of "CATEGORY" or "CATEGORY:WORDS OF THE PROMPT".

    Raises ValueError where there is none, listing the categories.
    """
    category, _, words = name.partition(":")
    found = [
        document
        for document in documents
        if document.task == category and words in document.prompt and document.prompt and document.response
    ]
    if not found:
        there = sorted({document.task for document in documents})
        raise ValueError(f"domain must be CATEGORY[:WORDS OF THE PROMPT] over {', '.join(there)}, got {name!r}")
    return Domain(name, found)


def glue(
    tokenizer: PreTrainedTokenizerBase, old: Domain, new: Domain, is_turn: bool, room: int, seed: Sequence[int]
) -> Switch | None:
    """A conversation of the old domain that goes on in the new one; None where the draw does not fit in `room` tokens.

    is_turn: the change comes with a prompt of the new domain, the user's next turn; else the response itself changes,
    from one paragraph to the next. The new text is made of as many responses as it takes, a paragraph each.
    """
    generator = np.random.default_rng(list(seed))
    before = old.documents[generator.integers(len(old.documents))]
    order = [new.documents[index] for index in generator.permutation(len(new.documents))]
    head, response = encode_prompt(tokenizer, before.prompt), _ids(tokenizer, before.response)
    between = _ids(tokenizer, PARAGRAPH)
    start = head + response + between
    if is_turn:
        start = _encode_turns(tokenizer, before, order[0].prompt)
    text: list[int] = []
    for document in order:
        text += (between if text else []) + _ids(tokenizer, document.response)
        if len(text) >= EDGES[-1]:
            break
    if len(response) < -EDGES[0] or len(text) < EDGES[-1] or len(start) + EDGES[-1] > room:
        return None
    cuts = {}
    for first, end in pairwise(EDGES):
        place = int(generator.integers(first, end))
        cuts[first] = (len(start) if first >= 0 else len(head) + len(response)) + place
    token_ids = torch.tensor([start + text[: EDGES[-1]]], dtype=torch.int64)
    return Switch(token_ids, cuts)


def _encode_turns(tokenizer: PreTrainedTokenizerBase, before: TextDocument, prompt: str) -> list[int]:
    """Token ids of a conversation up to where the answer to its second prompt begins."""
    turns = (("user", before.prompt), ("assistant", before.response), ("user", prompt))
    if not getattr(tokenizer, "chat_template", None):
        return tokenizer(PARAGRAPH.join(str(content) for _, content in turns) + PARAGRAPH)["input_ids"]
    messages = [{"role": role, "content": content} for role, content in turns]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(rendered, add_special_tokens=False)["input_ids"]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str | None) -> list[int]:
    assert text is not None, "a domain holds documents with a response"
    return tokenizer(text, add_special_tokens=False)["input_ids"]
