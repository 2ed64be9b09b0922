"""Models of five families with something that drafts for them, and calls of `generate` to be compared."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import nanospec
from nanospec.integrations.transformers import SpeculativeGenerate
from nanospec.target import Target
from tests.tiny_families import family_drafter, family_model

FIVE = ("gemma2", "llama-tied", "mistral-window", "mixtral", "qwen3-window")
EOS, PAD = 11, 0
TREE = (3, 4, 10)


@functools.cache
def cached_model(name: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    return family_model(name).to(dtype)


@functools.cache
def cached_speculative(name: str, dtype: torch.dtype = torch.float64, vocab: str = "in-context") -> SpeculativeGenerate:
    drafter = family_drafter(Target(cached_model(name, dtype)))
    return nanospec.generate_with(drafter, vocab, TREE, capacity=40, num_top=4)


def prompt_of(*token_ids: int) -> Tensor:
    return torch.tensor([token_ids])


def both(model: PreTrainedModel, custom: Any, ids: Tensor, seed: int = 0, **settings: Any) -> tuple[Any, Any]:
    """What plain `generate` returns and what it returns with `custom`, from the same state of torch's generator."""
    torch.manual_seed(seed)
    plain = model.generate(ids, **settings)
    torch.manual_seed(seed)
    return plain, model.generate(ids, custom_generate=custom, **settings)
