"""The one table of what `python -m bench.gpu` times: model shapes, trees and the sizes that are swept."""

from __future__ import annotations

from dataclasses import dataclass

from nanospec.tree_shape import TreeShape


@dataclass(frozen=True)
class PairSize:
    """A target and its EAGLE layer, which has the target's own layer sizes.

    model_type: "llama", "qwen2" or "qwen3"; the EAGLE layers published for qwen2 have biases on query, key and value.
    """

    name: str
    model_type: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool


@dataclass(frozen=True)
class BenchSizes:
    """Everything that `--shapes` chooses.

    draft_size, static_size  K of the in-context and of the static vocabulary
    num_top                  suggestions of the target per node that enter the in-context vocabulary
    context_length           tokens in the caches while a draft or a step is timed
    copy_bytes               of one side of the copy; cold_bytes: head rows that a kernel reads before it meets the same
                             ones again, well above the second-level cache
    scaling_pair             index of the pair that is swept
    num_updates              distinct vocabulary updates that one timing goes through
    num_rounds, sample_s     samples per side and how long one takes about
    """

    pairs: tuple[PairSize, ...]
    tree: TreeShape
    draft_size: int
    static_size: int
    num_top: int
    context_length: int
    copy_bytes: int
    cold_bytes: int
    scaling_pair: int
    vocab_sizes: tuple[int, ...]
    draft_sizes: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    num_updates: int
    steps_per_sample: int
    num_rounds: int
    step_rounds: int
    sample_s: float


QWEN_06B = PairSize("qwen3-0.6b", "qwen3", 1024, 3072, 28, 16, 8, 128, 151_936, True)
LLAMA_8B = PairSize("llama-3.1-8b", "llama", 4096, 14336, 32, 32, 8, 128, 128_256, False)
LLAMA_1B = PairSize("llama-3.2-1b", "llama", 2048, 8192, 16, 32, 8, 64, 128_256, True)
QWEN_7B = PairSize("qwen2-7b", "qwen2", 3584, 18944, 28, 28, 4, 128, 152_064, False)

SIZES = {
    "real": BenchSizes(
        pairs=(LLAMA_8B, LLAMA_1B, QWEN_7B),
        tree=TreeShape(6, 10, 60),
        draft_size=3072,
        static_size=32_768,
        num_top=16,
        context_length=512,
        copy_bytes=2**31,
        cold_bytes=2**28,
        scaling_pair=0,
        vocab_sizes=(32_768, 65_536, 131_072, 262_144),
        draft_sizes=(256, 1024, 3072, 8192, 16_384),
        batch_sizes=(1, 4, 16, 32),
        num_updates=8,
        steps_per_sample=24,
        num_rounds=15,
        step_rounds=7,
        sample_s=20e-3,
    ),
    "tiny": BenchSizes(
        pairs=(
            PairSize("tiny-llama", "llama", 32, 48, 2, 4, 2, 8, 320, False),
            PairSize("tiny-qwen2", "qwen2", 32, 48, 2, 4, 2, 8, 352, True),
        ),
        tree=TreeShape(3, 4, 10),
        draft_size=64,
        static_size=128,
        num_top=3,
        context_length=24,
        copy_bytes=2**20,
        cold_bytes=2**14,
        scaling_pair=0,
        vocab_sizes=(256, 512),
        draft_sizes=(32, 64),
        batch_sizes=(1, 2),
        num_updates=2,
        steps_per_sample=3,
        num_rounds=3,
        step_rounds=3,
        sample_s=1e-4,
    ),
}
