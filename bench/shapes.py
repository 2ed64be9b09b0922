"""The one table of shapes that every bench reads."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Shape(NamedTuple):
    """Hidden size D, vocabulary V, draft vocabulary K of a pair, and the sizes of the drafter's layer: its target's."""

    hidden_size: int
    vocab_size: int
    draft_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


SHAPES = {
    "demo": Shape(256, 131_072, 3072, 1024, 4, 2, 64),
    "hidden-1024": Shape(1024, 131_072, 3072, 3072, 16, 8, 128),  # layers as in Qwen3-0.6B
    "llama-3.2-1b": Shape(2048, 128_256, 3072, 8192, 32, 8, 64),
    "llama-3.1-8b": Shape(4096, 128_256, 3072, 14336, 32, 8, 128),
}
NUM_ROWS = (8, 10, 32)  # frontier nodes of a level (branching 8 or 10), nodes of a tree
DTYPE = torch.bfloat16
