"""The kernels of the drafter's head compiled for GPUs that need not be here: they fit into registers and shared memory.

Llama-3.2-1B (D = 2048), Llama-3.1-8B and Qwen3-8B (4096) and Gemma3-4B (2560) with K = 3072 get the same machine code:
D and K are arguments, of which a launch only knows that 16 divides them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")
from nanospec.ops import gathered_linear_triton as linear
from nanospec.ops import gathered_topk_logprob_triton as topk
from tests.ops.triton_kernels import TARGETS, CompiledKernel, GPUTarget, assert_fits, compile_ahead, count_spills

DTYPE = torch.bfloat16
HIDDEN_SIZES = {"Llama-3.2-1B": 2048, "Llama-3.1-8B": 4096, "Qwen3-8B": 4096, "Gemma3-4B": 2560}
NUM_IDS = 3072
TYPES = dict.fromkeys(("x", "source", "bias"), "*bf16") | {"draft_ids": "*i64", "count": "*i32"}
TYPES |= {"partial": "*fp32", "block_max": "*fp32", "block_sum": "*fp32", "best_log_prob": "*fp32"}
TYPES |= {"block_keys": "*i64", "best_ids": "*i64"}
# Strides of a launch over contiguous tensors.
ONES = dict.fromkeys(
    ("x_stride_d", "source_stride_d", "ids_stride_k", "bias_stride", "count_stride", "out_stride_k"), 1
)


def blocks_of(num_tokens: int, block_k: int | None = None) -> dict[str, int]:
    block_n, narrow_k, block_d = linear.block_sizes(num_tokens, DTYPE)
    return {"BLOCK_N": block_n, "BLOCK_K": block_k or narrow_k, "BLOCK_D": block_d}


# (kernel, constants, type of out)
CASES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "linear of 10": (linear.gathered_linear_kernel, {"IS_SPLIT": False} | blocks_of(10), "*bf16"),
    "linear of 60, D split": (linear.gathered_linear_kernel, {"IS_SPLIT": True} | blocks_of(60), "*fp32"),
    "sum of partial sums": (linear.add_partial_sums_kernel, {"BLOCK_K": linear.BLOCK_SUM}, "*bf16"),
    "best of blocks of 10": (topk.best_of_blocks_kernel, blocks_of(10), ""),
    "best of wide blocks of 10": (topk.best_of_blocks_kernel, blocks_of(10, topk.MAX_BLOCK_K), ""),
    "best of blocks of 60": (topk.best_of_blocks_kernel, blocks_of(60), ""),
    "merge": (topk.merge_best_kernel, {"BLOCK_K": 16, "BLOCK_BEST": 64, "WIDTH": topk.MERGE_WIDTH}, ""),
}


def compile_case(case: str, target: GPUTarget, monkeypatch, tmp_path, **options: int) -> CompiledKernel:
    kernel, constants, out_type = CASES[case]
    has_bias = not constants.get("IS_SPLIT", False)  # of parts, the kernel that adds them up adds the bias
    constants = {"HAS_ROWS": False, "HAS_BIAS": has_bias, "HAS_COUNT": True} | ONES | constants
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    types = TYPES | {"out": out_type}
    if "x" in kernel.arg_names:
        options |= {"num_stages": linear.NUM_STAGES}
    return compile_ahead(kernel, types, constants, target, tmp_path, monkeypatch, **options)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target.arch))
@pytest.mark.parametrize("case", CASES)
def test_nothing_spills_and_shared_memory_suffices(case: str, target, monkeypatch, tmp_path) -> None:
    assert_fits(compile_case(case, target, monkeypatch, tmp_path), target)


def test_a_kernel_that_spills_is_found(monkeypatch, tmp_path) -> None:
    compiled = compile_case("best of blocks of 60", TARGETS[0], monkeypatch, tmp_path, num_warps=1)
    assert count_spills(compiled, TARGETS[0]) > 0


@pytest.mark.parametrize("num_multiprocessors", [40, 132])
def test_the_named_shapes_specialise_kernels_alike(num_multiprocessors: int) -> None:
    _, block_k, block_d = linear.block_sizes(60, DTYPE)
    for hidden_size in HIDDEN_SIZES.values():
        split_size = linear.split_dims(hidden_size, block_d, NUM_IDS // block_k, num_multiprocessors)
        assert all(size % 16 == 0 for size in (hidden_size, split_size, NUM_IDS))
