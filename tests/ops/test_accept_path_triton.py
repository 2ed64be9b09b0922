"""The kernel through Triton's interpreter against the PyTorch version, and compiled for GPUs that need not be here."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="needs Triton")

from nanospec.acceptance import accept_greedy
from nanospec.records import DraftTree, Verdict
from nanospec.tree_layout import MAX_KERNEL_NODES, tree_layout
from tests.ops.triton_kernels import TARGETS, assert_fits, compile_ahead, load_interpreted

MODULE = "nanospec.ops.accept_path_triton"


@pytest.fixture(scope="module")
def kernel() -> ModuleType:
    """Its kernels are interpreted, on the CPU."""
    return load_interpreted(MODULE)


def random_tree(batch_size: int, num_nodes: int, vocab_size: int, unused: float, draw: torch.Generator) -> DraftTree:
    """Distinct siblings: a node whose parent has a child with its token already is unused, and so are some besides."""
    parents = (torch.rand(batch_size, num_nodes, generator=draw) * torch.arange(num_nodes)).long()
    tokens = torch.randint(vocab_size, (batch_size, num_nodes), generator=draw)
    tokens[:, 1:].masked_fill_(torch.rand(batch_size, num_nodes - 1, generator=draw) < unused, -1)
    for row in range(batch_size):
        taken: set[tuple[int, int]] = set()
        for node in range(1, num_nodes):
            child = (int(parents[row, node]), int(tokens[row, node]))
            if child in taken or tokens[row, child[0]] < 0:
                tokens[row, node] = -1
            taken.add(child)
    mask, depth = tree_layout(parents, num_nodes)
    return DraftTree(tokens, parents, depth, torch.zeros(tokens.shape), mask)


def kernel_verdict(kernel: ModuleType, tree: DraftTree, best_id: Tensor, max_depth: int) -> Verdict:
    return Verdict(*kernel.accept_path_triton(tree.token_ids, tree.parent_pos, best_id, max_depth))


def test_by_hand(kernel) -> None:
    # root 4 -> {5, 7}, 7 -> 9; the target says 7 after the root, 9 after 7 and 3 after 9; the last node is unused.
    parents = torch.tensor([[0, 0, 0, 2, 0]])
    mask, depth = tree_layout(parents, 3)
    tree = DraftTree(torch.tensor([[4, 5, 7, 9, -1]]), parents, depth, torch.zeros(1, 5), mask)
    verdict = kernel_verdict(kernel, tree, torch.tensor([[7, 0, 9, 3, 3]]), 3)
    assert [field.tolist() for field in verdict] == [[[0, 2, 3, 0]], [3], [3]]


@given(
    batch_size=st.integers(1, 3),
    num_nodes=st.sampled_from((1, 2, 7, 16, 33, 60, 128)),
    vocab_size=st.sampled_from((1, 2, 3, 20)),
    unused=st.sampled_from((0.0, 0.3, 1.0)),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60)
def test_matches_pytorch(kernel, batch_size, num_nodes, vocab_size, unused, seed) -> None:
    draw = torch.Generator().manual_seed(seed)
    tree = random_tree(batch_size, num_nodes, vocab_size, unused, draw)
    best_id = torch.randint(vocab_size, (num_nodes, batch_size), generator=draw).T  # strided
    max_depth = int(tree.depth.max())
    expected = accept_greedy(tree, best_id, max_depth)
    for ours, theirs in zip(kernel_verdict(kernel, tree, best_id, max_depth), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target.arch))
def test_compiles_ahead_of_time(target, monkeypatch, tmp_path) -> None:
    from nanospec.ops import accept_path_triton as module

    tensors = ("token_ids", "parent_pos", "best_id", "accepted_pos", "num_accepted", "next_id")
    compiled = compile_ahead(
        module.accept_path_kernel,
        dict.fromkeys(tensors, "*i64"),
        {"BLOCK_T": MAX_KERNEL_NODES},
        target,
        tmp_path,
        monkeypatch,
        num_warps=module.NUM_WARPS,
    )
    assert_fits(compiled, target)
