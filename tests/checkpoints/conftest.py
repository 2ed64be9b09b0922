"""A tiny target in memory, for drafts read from files that the tests write."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nanospec.target import Target


@pytest.fixture
def target() -> Target:
    """Hidden size 16, 37 ids, eight layers, float32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=37, hidden_size=16, intermediate_size=24, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return Target(LlamaForCausalLM(config).requires_grad_(False))
