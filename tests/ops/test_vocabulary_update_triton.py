"""The kernel through Triton's interpreter against the PyTorch version, and compiled for GPUs that need not be here."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton", reason="needs Triton")

from nanospec.locality_tracker import LocalityTracker
from nanospec.ops.vocabulary_update import MAX_KERNEL_IDS, MAX_KERNEL_SLOTS, has_kernel, vocabulary_update
from tests.ops.triton_kernels import TARGETS, assert_fits, compile_ahead, load_interpreted

MODULE = "nanospec.ops.vocabulary_update_triton"
STATE = ("slot_token", "slot_seen", "token_slot", "token_seen", "count", "clock")


@pytest.fixture(scope="module")
def kernel() -> ModuleType:
    """Its kernels are interpreted, on the CPU; blocks are small, so that few slots are more than one block of pairs."""
    module = load_interpreted(MODULE)
    module.MIN_BLOCK_IDS = 16
    return module


def state_of(tracker: LocalityTracker) -> dict[str, Tensor]:
    return {name: getattr(tracker, name) for name in STATE}


def assert_same_update(kernel: ModuleType, tracker: LocalityTracker, ids: Tensor) -> None:
    """Update the tracker with PyTorch and a copy of its state with the kernel: the same bits, but for scratch."""
    copy = {name: tensor.clone() for name, tensor in state_of(tracker).items()}
    expected = vocabulary_update(ids, **state_of(tracker))
    changed = kernel.vocabulary_update_triton(ids, **copy)
    for name, ours, theirs in zip(("slot", "id"), changed, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")
    for name, theirs in state_of(tracker).items():
        end = tracker.capacity if name.startswith("slot") else None  # what the scratch slot holds is nobody's business
        torch.testing.assert_close(copy[name][..., :end], theirs[..., :end], rtol=0, atol=0, msg=name)


def test_worked_example(kernel) -> None:
    tracker = LocalityTracker(vocab_size=10, capacity=2)
    for ids in ([7, 3, 7], [5], [-1, 7, 10]):
        assert_same_update(kernel, tracker, torch.tensor([ids]))
    assert tracker.draft_ids.tolist() == [[7, 5]]


@given(
    vocab_size=st.integers(1, 90),
    share=st.floats(0, 1),
    pinned_share=st.sampled_from((0.0, 0.0, 0.3, 1.0)),
    batch_size=st.integers(1, 2),
    sizes=st.lists(st.sampled_from((1, 2, 7, 16, 17, 40)), min_size=1, max_size=4),
    reset_after=st.integers(0, 4),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=25)
def test_matches_pytorch(kernel, vocab_size, share, pinned_share, batch_size, sizes, reset_after, seed) -> None:
    draw = torch.Generator().manual_seed(seed)
    capacity = max(1, int(share * vocab_size))
    pinned = torch.randperm(vocab_size, generator=draw)[: int(pinned_share * capacity)]
    tracker = LocalityTracker(vocab_size, capacity, batch_size, pinned)
    tracker.clock += 2**47  # later than any that a run reaches
    for step, num_ids in enumerate(sizes):
        if step == reset_after:
            tracker.reset(torch.tensor([0]))
        ids = torch.randint(-2, vocab_size + 2, (num_ids, batch_size), generator=draw).T  # strided
        assert_same_update(kernel, tracker, ids)


def test_bisection_finds_the_oldest_among_more_slots_than_a_block(kernel) -> None:
    draw = torch.Generator().manual_seed(0)
    tracker = LocalityTracker(vocab_size=400, capacity=100, pinned_ids=torch.arange(30, 40))
    for num_ids in (100, 100, 3, 16, 9):
        assert_same_update(kernel, tracker, torch.randint(400, (1, num_ids), generator=draw))
    assert int(tracker.count) == 100
    # All that may leave were just seen, in the same batch as the one newcomer and after it: it finds no place.
    full = LocalityTracker(vocab_size=20, capacity=4, pinned_ids=torch.tensor([0, 1]))
    for ids in ([5, 6], [9, 6, 5], [7, 8, 9]):
        assert_same_update(kernel, full, torch.tensor([ids]))
    assert sorted(full.draft_ids[0].tolist()) == [0, 1, 8, 9]


def test_an_evicted_slot_may_have_been_seen_in_the_same_batch(kernel) -> None:
    tracker = LocalityTracker(vocab_size=10, capacity=1)
    for ids in ([7], [7, 3], [3, 3, -1]):
        assert_same_update(kernel, tracker, torch.tensor([ids]))
    assert tracker.draft_ids.tolist() == [[3]]


def test_a_state_in_another_layout_is_refused_by_name(kernel) -> None:
    state = state_of(LocalityTracker(vocab_size=10, capacity=2, batch_size=2))
    state["token_seen"] = state["token_seen"].T.contiguous().T
    with pytest.raises(ValueError, match="token_seen must be contiguous, got strides"):
        kernel.vocabulary_update_triton(torch.zeros(2, 1, dtype=torch.int64), **state)


def test_only_sizes_within_the_limits_on_cuda_go_to_the_kernel() -> None:
    with FakeTensorMode():
        for device, num_ids, capacity, expected in [
            ("cuda", MAX_KERNEL_IDS, MAX_KERNEL_SLOTS, True),
            ("cuda", MAX_KERNEL_IDS + 1, 4, False),
            ("cuda", 1, MAX_KERNEL_SLOTS + 1, False),
            ("cpu", 1, 4, False),
        ]:
            assert has_kernel(torch.empty(1, num_ids, dtype=torch.int64, device=device), capacity) is expected


# n and K of a decoding step, and the largest of both.
@pytest.mark.parametrize(
    ("target", "num_ids", "capacity"),
    [(target, 240, 3072) for target in TARGETS[:-1]] + [(TARGETS[-1], MAX_KERNEL_IDS, MAX_KERNEL_SLOTS)],
    ids=lambda value: str(getattr(value, "arch", value)),
)
def test_compiles_ahead_of_time(target, num_ids: int, capacity: int, monkeypatch, tmp_path) -> None:
    from nanospec.ops import vocabulary_update_triton as module

    constants, num_warps = module.launch_constants(num_ids, capacity)
    types = {"slot_token", "slot_seen", "token_seen", "clock", "ids", "changed_slot", "changed_id", "scratch"}
    compiled = compile_ahead(
        module.vocabulary_update_kernel,
        dict.fromkeys(types, "*i64") | {"token_slot": "*i32", "count": "*i32"},
        constants | {"ids_stride_n": 1},
        target,
        tmp_path,
        monkeypatch,
        num_warps=num_warps,
        indivisible=("vocab_size",),
    )
    assert_fits(compiled, target)
