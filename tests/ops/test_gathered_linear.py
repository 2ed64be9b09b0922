"""Logits over selected rows against one plain product per sequence: values, gradients, and as a node of a graph."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from nanospec.ops import weight_first
from nanospec.ops.gathered_linear import gathered_linear, shared_gathered_linear
from nanospec.ops.gathered_linear_reference import gathered_linear_reference

# float64 sums of at most 7 products of order 1: only the order of summation differs.
ATOL = 1e-12
BF16_RTOL = 2**-6  # one rounding to 8 bits, of sums of order 1
OP = torch.ops.nanospec.gathered_linear.default
# As on a CPU with AMX; the order is right without it and for small weights, only slow.
WITH_AMX = patch.multiple(weight_first, HAS_AMX=True, LEAST_WEIGHTS=1)


def make_inputs(
    batch_size: int,
    num_ids: int,
    *,
    num_tokens: int = 3,
    hidden_size: int = 4,
    vocab_size: int = 9,
    is_shared: bool = False,
    has_bias: bool = True,
    count: list[int] | None = None,
    has_rows: bool = False,
    seed: int = 0,
) -> list[torch.Tensor | None]:
    """Arguments in float64, the floating ones as leaves that want a gradient; ids are repeated now and then."""
    draw = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=draw).requires_grad_()

    x, weight = leaf(batch_size, num_tokens, hidden_size), leaf(vocab_size, hidden_size)
    ids = torch.randint(vocab_size, (1 if is_shared else batch_size, num_ids), generator=draw)
    bias = leaf(vocab_size) if has_bias else None
    counts = None if count is None else torch.tensor(count, dtype=torch.int32)
    rows = weight.detach()[ids].requires_grad_() if has_rows else None
    return [x, weight, ids, bias, counts, rows]


@given(
    data=st.data(),
    batch_size=st.integers(1, 3),
    num_tokens=st.integers(0, 5),
    hidden_size=st.integers(1, 7),
    vocab_size=st.integers(1, 19),
    num_ids=st.integers(1, 23) | st.sampled_from((64, 65, 150)),  # one step of the computed width and several
    is_shared=st.booleans(),
    has_bias=st.booleans(),
    has_rows=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=100)
def test_matches_reference(
    data, batch_size, num_tokens, hidden_size, vocab_size, num_ids, is_shared, has_bias, has_rows, seed
) -> None:
    num_counts = data.draw(st.sampled_from((0, 1, batch_size)), label="number of counts")
    counts = st.lists(st.integers(0, num_ids), min_size=num_counts, max_size=num_counts)
    args = make_inputs(
        batch_size,
        num_ids,
        num_tokens=num_tokens,
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        is_shared=is_shared,
        has_bias=has_bias,
        count=data.draw(counts, label="count") if num_counts else None,
        has_rows=has_rows,
        seed=seed,
    )
    got = gathered_linear(*args)
    assert got.shape == (batch_size, num_tokens, num_ids)
    assert got.is_contiguous()
    torch.testing.assert_close(got, gathered_linear_reference(*args), rtol=0, atol=ATOL)


def test_worked_example() -> None:
    x, weight = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    ids, bias, count = torch.tensor([[2, 0, 0]]), torch.tensor([0.5, 0.0, 0.0]), torch.tensor([2], dtype=torch.int32)
    assert gathered_linear(x, weight, ids, bias, count).tolist() == [[[3.0, 1.5, float("-inf")]]]
    assert shared_gathered_linear(x[0, 0], weight, ids[0], bias, count).tolist() == [3.0, 1.5, float("-inf")]


@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (2, 0, 3), (1, 2, 3)])
def test_any_leading_dimensions_share_the_ids(leading: tuple[int, ...]) -> None:
    _, weight, ids, bias, count, rows = make_inputs(1, 6, count=[4], has_rows=True)
    x = torch.randn(*leading, 4, dtype=torch.float64)
    expected = gathered_linear_reference(x.reshape(1, -1, 4), weight, ids, bias, count).reshape(*leading, 6)
    for given_rows in (None, rows[0]):
        got = shared_gathered_linear(x, weight, ids[0], bias, count, given_rows)
        torch.testing.assert_close(got, expected, rtol=0, atol=ATOL)


CASES = {
    "plain": {"has_bias": False},
    "biased": {},
    "counted": {"count": [2, 4]},
    "shared": {"is_shared": True, "count": [3]},
    "shared ids, a count each": {"is_shared": True, "count": [0, 5]},
    "packed": {"has_rows": True, "count": [4]},
    "packed and shared": {"has_rows": True, "is_shared": True, "count": [5]},
}


def finite_part(*args: torch.Tensor | None) -> torch.Tensor:
    logits = gathered_linear(*args)
    return logits.masked_fill(logits.isinf(), 0.0)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_gradients_are_the_derivatives(case: dict) -> None:
    args = make_inputs(2, 5, **case)
    if args[5] is not None:  # the weight is not read: its derivative is zero and None stands for it
        args[1].requires_grad_(False)
    assert torch.autograd.gradcheck(finite_part, args)
    assert torch.autograd.gradgradcheck(finite_part, args)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_is_a_sound_custom_op(case: dict) -> None:
    torch.library.opcheck(OP, make_inputs(2, 5, **case))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_is_a_sound_custom_op_where_weights_come_first(case: dict) -> None:
    """Of bfloat16, as on a CPU with AMX: what lies column by column, and what its fake says of it, agree."""
    args = [x.detach().bfloat16() if x is not None and x.is_floating_point() else x for x in make_inputs(2, 5, **case)]
    with WITH_AMX:
        torch.library.opcheck(OP, args, test_utils=("test_schema", "test_faketensor"))


@given(
    num_tokens=st.integers(0, 5),
    num_ids=st.sampled_from((1, 5, 64, 150)),
    count=st.integers(0, 150) | st.none(),
    has_bias=st.booleans(),
    has_rows=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60)
def test_shared_ids_are_scored_right_where_weights_come_first(
    num_tokens, num_ids, count, has_bias, has_rows, seed
) -> None:
    counts = None if count is None else [min(count, num_ids)]
    sizes = {"num_tokens": num_tokens, "is_shared": True, "has_bias": has_bias, "has_rows": has_rows, "seed": seed}
    wide = [None if x is None else x.detach() for x in make_inputs(2, num_ids, count=counts, **sizes)]
    args = [x.bfloat16() if x is not None and x.is_floating_point() else x for x in wide]
    with WITH_AMX:
        got = gathered_linear(*args)
    expected = gathered_linear_reference(*(x.double() if x is not None and x.is_floating_point() else x for x in args))
    torch.testing.assert_close(got.double(), expected, rtol=BF16_RTOL, atol=BF16_RTOL)


def test_only_what_needs_a_gradient_gets_one() -> None:
    args = make_inputs(1, 5, count=[3], has_rows=True)
    finite_part(*args).sum().backward()
    x, weight, _, bias, _, rows = args
    assert weight.grad is None
    assert all(leaf.grad is not None for leaf in (x, bias, rows))
    assert rows.grad[0, 3:].eq(0).all()


@pytest.mark.parametrize("is_shared", [True, False])
def test_unused_columns_do_not_reach_gradients(is_shared: bool) -> None:
    args = make_inputs(2, 5, is_shared=is_shared, count=[3], has_rows=True)
    with torch.no_grad():
        args[5][:, 3:] = float("nan")  # what was never written
    gathered_linear(*args).backward(torch.full((2, 3, 5), float("inf")).index_fill(2, torch.arange(3), 1.0))
    assert all(leaf.grad.isfinite().all() for leaf in (args[0], args[3], args[5]))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_with_any_number_of_tokens(backend: str) -> None:
    def loss(x, weight, ids, bias, count):
        return shared_gathered_linear(x, weight, ids, bias, count)[..., :2].square().sum(-1)

    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(loss, backend=counter, fullgraph=True, dynamic=True)
    for num_tokens in (3, 7):
        x, weight, ids, bias, count, _ = make_inputs(2, 5, num_tokens=num_tokens, is_shared=True, count=[4])
        leaves = (x, weight, bias)
        expected, got = (run(x, weight, ids[0], bias, count) for run in (loss, compiled))
        torch.testing.assert_close(got, expected, rtol=0, atol=10 * ATOL)  # squares of sums
        wanted = torch.autograd.grad(expected.sum(), leaves)
        for grad, expected_grad in zip(torch.autograd.grad(got.sum(), leaves), wanted, strict=True):
            torch.testing.assert_close(grad, expected_grad, rtol=0, atol=100 * ATOL)  # summed over tokens besides
    assert counter.frame_count == 1


def test_count_changes_without_recompilation() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(gathered_linear, backend=counter, fullgraph=True)
    x, weight, ids, bias, count, _ = make_inputs(1, 150, count=[0])
    with torch.no_grad():
        for num_active in (0, 7, 150):
            count.fill_(num_active)
            got = compiled(x, weight, ids, bias, count)
            torch.testing.assert_close(got, gathered_linear_reference(x, weight, ids, bias, count), rtol=0, atol=ATOL)
    assert counter.frame_count == 1


def test_autocast_leaves_the_dtype_alone() -> None:
    x, weight, ids, *_ = make_inputs(1, 5)
    with torch.autocast("cpu", torch.bfloat16):
        got = gathered_linear(x.float(), weight.float(), ids)
    assert got.dtype == torch.float32
    assert torch.equal(got, gathered_linear(x.float(), weight.float(), ids))


X, WEIGHT, IDS = torch.zeros(2, 3, 4), torch.zeros(10, 4), torch.zeros(1, 5, dtype=torch.int64)
COUNT, ROWS = torch.zeros(1, dtype=torch.int32), torch.zeros(1, 5, 4)


@pytest.mark.parametrize(
    ("x", "weight", "ids", "others", "error", "message"),
    [
        (X[0], WEIGHT, IDS, {}, ValueError, r"x must be \[B, n, D\]"),
        (X, WEIGHT[:, :3], IDS, {}, ValueError, r"weight \[V, D\], got \(2, 3, 4\) and \(10, 3\)"),
        (X, WEIGHT, IDS[0], {}, ValueError, r"draft_ids must be \[2 or 1, K\]"),
        (X, WEIGHT, IDS.expand(3, -1), {}, ValueError, r"draft_ids must be \[2 or 1, K\], got shape \(3, 5\)"),
        (X, WEIGHT, IDS.int(), {}, TypeError, "draft_ids must be int64"),
        (X, WEIGHT.double(), IDS, {}, TypeError, "weight must have the dtype of x"),
        (X, WEIGHT, IDS.to("meta"), {}, ValueError, "must be on one device, got cpu, cpu, meta"),
        (X, WEIGHT, IDS, {"bias": torch.zeros(9)}, ValueError, r"bias must be \[10\]"),
        (X, WEIGHT, IDS, {"bias": torch.zeros(10).half()}, TypeError, "bias must be torch.float32"),
        (X, WEIGHT, IDS, {"count": COUNT.expand(3)}, ValueError, r"count must be \[2 or 1\], got shape \(3,\)"),
        (X, WEIGHT, IDS, {"count": COUNT.long()}, TypeError, "count must be torch.int32, got torch.int64"),
        (X, WEIGHT, IDS, {"count": COUNT.to("meta")}, ValueError, "count must be on the device of x, cpu, got meta"),
        (X, WEIGHT, IDS, {"rows": ROWS[:, :4]}, ValueError, r"rows must be \(1, 5, 4\), .* got shape \(1, 4, 4\)"),
        (X, WEIGHT, IDS, {"rows": ROWS.double()}, TypeError, "rows must be torch.float32"),
    ],
)
def test_what_does_not_fit_is_refused(x, weight, ids, others, error, message) -> None:
    with pytest.raises(error, match=message):
        gathered_linear(x, weight, ids, **others)


def test_shared_ids_and_rows_have_no_batch_dimension() -> None:
    with pytest.raises(ValueError, match=r"draft_ids must be \[K\], got shape \(1, 5\)"):
        shared_gathered_linear(X, WEIGHT, IDS)
    with pytest.raises(ValueError, match=r"rows must be \[K, D\], got shape \(1, 5, 4\)"):
        shared_gathered_linear(X, WEIGHT, IDS[0], rows=ROWS)
    with pytest.raises(ValueError, match=r"x must be \[.., D\], got shape \(\)"):
        shared_gathered_linear(X[0, 0, 0], WEIGHT, IDS[0])
