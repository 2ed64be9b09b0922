"""What `python -m bench.real_shapes` times: pairs, rows, and the sizes that are swept."""

from __future__ import annotations

from dataclasses import dataclass

from bench.gpu.sizes import LLAMA_1B, QWEN_06B, PairSize
from nanospec.planning.calibrate import SMALL_EFFORT, Effort

FULL, HEADLESS, HYBRID, SATURATED = "full", "head deleted", "hybrid", "hybrid, all slots used"
# Tokens per target pass, each with where it comes from. Random weights accept next to nothing.
ACCEPT_LENGTHS = {
    "published: FR-Spec, Llama-3.2-1B, EAGLE-2 of depth 3 and 30 nodes": 2.81,
    "published: FR-Spec, Llama-3-8B, EAGLE-2 of depth 6 and 60 nodes": 3.89,
    "measured: the embedded pair, full vocabulary, depth 5, 8 children, 32 nodes": 4.04,
}


@dataclass(frozen=True)
class RealSizes:
    """Everything that `--shapes` chooses.

    num_pinned, typical_rows  most frequent ids of the hybrid vocabulary, and its active rows on text
    capacity                  rows of a hybrid vocabulary whose slots are all in use
    growth_pair               the pair whose draft is swept over V, K, batch and context
    rounds, step_rounds       samples per side; num_steps: decoding steps of a sample
    """

    pairs: tuple[PairSize, ...]
    growth_pair: PairSize
    num_pinned: int
    typical_rows: int
    capacity: int
    static_size: int
    num_top: int
    context_length: int
    rounds: int
    step_rounds: int
    num_steps: int
    vocab_sizes: tuple[int, ...]
    draft_sizes: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    context_lengths: tuple[int, ...]
    node_counts: tuple[int, ...]
    effort: Effort


TINY_PAIR = PairSize("tiny", "qwen3", 32, 48, 2, 4, 2, 8, 640, True)
SIZES = {
    "real": RealSizes(
        pairs=(QWEN_06B, LLAMA_1B),
        growth_pair=QWEN_06B,
        num_pinned=1024,
        typical_rows=1408,
        capacity=3072,
        static_size=32_768,
        num_top=16,
        context_length=512,
        rounds=9,
        step_rounds=5,
        num_steps=4,
        vocab_sizes=(32_768, 65_536, 131_072, 262_144, 524_288, 1_048_576),
        draft_sizes=(256, 1024, 3072, 8192, 16_384, 32_768),
        batch_sizes=(1, 2, 4, 8),
        context_lengths=(128, 512, 2048, 8192),
        node_counts=(2, 4, 8, 12, 16, 24, 32, 48, 60),
        effort=Effort(),
    ),
    "tiny": RealSizes(
        pairs=(TINY_PAIR,),
        growth_pair=TINY_PAIR,
        num_pinned=16,
        typical_rows=64,
        capacity=128,
        static_size=128,
        num_top=3,
        context_length=24,
        rounds=2,
        step_rounds=2,
        num_steps=2,
        vocab_sizes=(256, 512),
        draft_sizes=(32, 64),
        batch_sizes=(1, 2),
        context_lengths=(8, 32),
        node_counts=(2, 8, 16),
        effort=SMALL_EFFORT,
    ),
}
