"""The kernel through Triton's interpreter against plain PyTorch, and compiled for GPUs that need not be here."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton", reason="needs Triton")

from nanospec.tree_layout import MAX_KERNEL_NODES, ancestor_mask, has_tree_kernel, node_depth, tree_layout
from tests.ops.triton_kernels import TARGETS, assert_fits, compile_ahead, load_interpreted

MODULE = "nanospec.ops.tree_layout_triton"


@pytest.fixture(scope="module")
def kernel() -> ModuleType:
    """Its kernels are interpreted, on the CPU."""
    return load_interpreted(MODULE)


def test_worked_table(kernel) -> None:
    mask, depth = kernel.tree_layout_triton(torch.tensor([[0, 0, 0, 1]]), 2)
    assert mask.int().tolist() == [[[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]]
    assert depth.tolist() == [[0, 1, 1, 2]]


@given(
    batch_size=st.integers(1, 3),
    num_nodes=st.sampled_from((1, 2, 7, 16, 33, 60, 128)),
    max_depth=st.integers(0, 9),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40)
def test_matches_pytorch(kernel, batch_size, num_nodes, max_depth, seed) -> None:
    draw = torch.Generator().manual_seed(seed)
    # Deeper than max_depth as well: then both stop after as many steps.
    parents = (torch.rand(num_nodes, batch_size, generator=draw) * torch.arange(num_nodes)[:, None]).long().T  # strided
    mask, depth = kernel.tree_layout_triton(parents, max_depth)
    expected, expected_depth = tree_layout(parents, max_depth)
    assert torch.equal(expected, ancestor_mask(parents, max_depth))
    assert torch.equal(expected_depth, node_depth(expected))
    assert mask.dtype == torch.bool
    assert torch.equal(mask, expected)
    assert torch.equal(depth, expected_depth)


def test_only_small_trees_on_cuda_go_to_the_kernel() -> None:
    with FakeTensorMode():
        for device, num_nodes, expected in [
            ("cuda", MAX_KERNEL_NODES, True),
            ("cuda", MAX_KERNEL_NODES + 1, False),
            ("cpu", 4, False),
        ]:
            assert has_tree_kernel(torch.empty(1, num_nodes, dtype=torch.int64, device=device)) is expected


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target.arch))
def test_compiles_ahead_of_time(target, monkeypatch, tmp_path) -> None:
    from nanospec.ops import tree_layout_triton as module

    block_t, num_warps = module.launch_constants(MAX_KERNEL_NODES)
    compiled = compile_ahead(
        module.tree_layout_kernel,
        {"parent_pos": "*i64", "ancestor_mask": "*i1", "depth": "*i64"},
        {"BLOCK_T": block_t},
        target,
        tmp_path,
        monkeypatch,
        num_warps=num_warps,
    )
    assert_fits(compiled, target)
