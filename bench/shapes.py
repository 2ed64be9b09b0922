"""The one table of shapes that every bench reads."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Shape(NamedTuple):
    """Hidden size D, vocabulary V and draft vocabulary K of a pair."""

    hidden_size: int
    vocab_size: int
    draft_size: int


SHAPES = {
    "demo": Shape(256, 131_072, 3072),
    "hidden-1024": Shape(1024, 131_072, 3072),
    "llama-3.2-1b": Shape(2048, 128_256, 3072),
    "llama-3.1-8b": Shape(4096, 128_256, 3072),
}
NUM_ROWS = (8, 10, 32)  # frontier nodes of a level (branching 8 or 10), nodes of a tree
DTYPE = torch.bfloat16
