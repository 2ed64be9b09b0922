"""The op on a CPU and its kernels through Triton's interpreter, both against the reference."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanospec.ops.gathered_topk_logprob import gathered_topk_logprob
from nanospec.ops.gathered_topk_logprob_reference import gathered_topk_logprob_reference
from tests.ops.triton_kernels import load_interpreted

pytestmark = [
    pytest.mark.filterwarnings("ignore:divide by zero encountered in log"),  # no column is active
    pytest.mark.filterwarnings("ignore:invalid value encountered"),  # NaN and infinite weights
]

# The logits of most tests are small integers, the same in every dtype: their order is exact and full of ties. What is
# left is the rounding of a float32 logarithm of a sum and of one subtraction, at values below 200.
ATOL = 1e-4
# Sums of 300 products of order 1 in float32, of logits up to 100, against float64.
ATOL_SUMS = 1e-3


@pytest.fixture(scope="module")
def kernel() -> ModuleType:
    return load_interpreted("nanospec.ops.gathered_topk_logprob_triton")


@pytest.fixture(scope="module", autouse=True)
def _uninitialised_memory_is_filled():
    """With NaN and the largest integers, which would win every comparison."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def integers(draw: torch.Generator, *shape: int, limit: int = 2) -> Tensor:
    return torch.randint(-limit, limit + 1, shape, generator=draw).float()


def make_case(
    draw: torch.Generator,
    shape: tuple[int, int, int, int],
    *,
    is_shared: bool,
    has_bias: bool,
    has_rows: bool,
    count: list[int] | None,
) -> list[Tensor | None]:
    """x, weight, draft_ids, bias, count, rows of integers; shape (B, n, D, K). Ids repeat in columns from count on."""
    batch_size, num_tokens, hidden_size, num_ids = shape
    num_vocabs = 1 if is_shared else batch_size
    vocab_size = num_ids + 7
    x = integers(draw, batch_size, hidden_size, num_tokens).mT  # strided
    weight = integers(draw, vocab_size, hidden_size)
    ids = torch.stack([torch.randperm(vocab_size, generator=draw)[:num_ids] for _ in range(num_vocabs)])
    counts, rows = None, weight[ids] if has_rows else None
    if count is not None:
        counts = torch.tensor(count[:num_vocabs], dtype=torch.int32)
        is_unused = torch.arange(num_ids) >= counts[:, None]
        ids = torch.where(is_unused, ids[:, :1], ids)
        rows = None if rows is None else rows.masked_fill(is_unused[..., None], float("nan"))  # never written
    return [x, weight, ids, integers(draw, vocab_size) if has_bias else None, counts, rows]


def of_dtype(case: list[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    return [part.to(dtype) if part is not None and part.is_floating_point() else part for part in case]


def assert_same(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], draft_ids: Tensor) -> None:
    ids, log_prob = got
    assert (ids.dtype, log_prob.dtype) == (torch.int64, torch.float32)
    torch.testing.assert_close(log_prob, expected[1], rtol=0, atol=ATOL)
    assert torch.equal(ids.where(~log_prob.isneginf(), 0), expected[0].where(~log_prob.isneginf(), 0))
    assert (ids[..., None] == draft_ids[:, None, None]).any(-1).all()  # one of the draft ids also where none is left


CASES = {
    "shape": st.tuples(
        st.integers(1, 3), st.sampled_from((1, 3, 17)), st.sampled_from((1, 7, 64, 129)), st.integers(1, 70)
    ),
    "is_shared": st.booleans(),
    "has_bias": st.booleans(),
    "has_rows": st.booleans(),
    "count": st.none() | st.lists(st.sampled_from((0, 1, 15, 16, 17, 70)), min_size=3, max_size=3),
    "k": st.sampled_from((1, 3, 10, 64)),
    "seed": st.integers(0, 2**16),
}


@given(**CASES, num_multiprocessors=st.sampled_from((0, 100)), dtype=st.sampled_from((torch.float32, torch.float16)))
@settings(max_examples=25)
def test_kernels_match_reference(kernel, shape, k, seed, num_multiprocessors, dtype, **parts) -> None:
    case = make_case(torch.Generator().manual_seed(seed), shape, **parts)
    k = min(k, shape[3])
    x, weight, ids, *others = of_dtype(case, dtype)
    got = kernel.gathered_topk_logprob_triton(x, weight, ids, k, *others, num_multiprocessors)
    x, weight, ids, *others = of_dtype(case, torch.float64)
    assert_same(got, gathered_topk_logprob_reference(x, weight, ids, k, *others), ids)


@given(**CASES, dtype=st.sampled_from((torch.float64, torch.float32, torch.float16)))
def test_op_on_a_cpu_matches_reference(shape, k, seed, dtype, **parts) -> None:
    case = make_case(torch.Generator().manual_seed(seed), shape, **parts)
    k = min(k, shape[3])
    x, weight, ids, *others = of_dtype(case, dtype)
    got = gathered_topk_logprob(x, weight, ids, k, *others)
    x, weight, ids, *others = of_dtype(case, torch.float64)
    assert_same(got, gathered_topk_logprob_reference(x, weight, ids, k, *others), ids)


# x = 1, so logits are the weights; ids 0 to 5 in another order. probability = exp(logit) / Σ exp(logit)
WEIGHT = torch.tensor([1.0, 3.0, 3.0, 0.0, float("nan"), 2.0]).log()[:, None]  # log 0 = -inf
IDS = torch.tensor([[5, 2, 0, 1, 3, 4]])


@pytest.fixture(params=["op", "kernels", "reference"])
def way(request, kernel):
    functions = {"op": gathered_topk_logprob, "reference": gathered_topk_logprob_reference}
    return functions.get(request.param, kernel.gathered_topk_logprob_triton)


def test_by_hand(way) -> None:
    ids, log_prob = way(torch.ones(1, 1, 1), WEIGHT, IDS, 5, None, torch.tensor([5], dtype=torch.int32))
    assert ids[0, 0].tolist() == [1, 2, 5, 0, 3]  # equal ones by ascending id
    expected = torch.tensor([3, 3, 2, 1, 0]).div(9).log()
    torch.testing.assert_close(log_prob[0, 0], expected, rtol=0, atol=ATOL)


def test_nan_comes_first_and_leaves_no_probability(way) -> None:
    negative_nan = torch.tensor(-0x400000, dtype=torch.int32).view(torch.float32)
    bias = torch.zeros(6).index_fill(0, torch.tensor([5]), negative_nan)
    ids, log_prob = way(torch.ones(1, 1, 1), WEIGHT, IDS, 4, bias)
    assert ids[0, 0].tolist() == [4, 5, 1, 2]
    assert log_prob.isneginf().all()


def test_the_sign_of_zero_is_no_order(way) -> None:
    weight = torch.tensor([[0.0], [-0.0], [0.0], [-1.0]])
    bias = torch.tensor([-0.0, -0.0, 0.0, 0.0])
    ids, log_prob = way(torch.ones(1, 1, 1), weight, torch.tensor([[3, 1, 2, 0]]), 4, bias)
    assert ids[0, 0].tolist() == [0, 1, 2, 3]
    assert log_prob[0, 0, 0] == log_prob[0, 0, 2]


def test_large_logits_do_not_overflow(way) -> None:
    x, weight = torch.full((1, 1, 1), 1e30), torch.tensor([[1.0], [-1.0], [1.0]])
    ids, log_prob = way(x, weight, torch.arange(3)[None], 3)
    assert ids[0, 0].tolist() == [0, 2, 1]
    # beside 1e30 the logarithm of 2 is lost
    torch.testing.assert_close(log_prob[0, 0], torch.tensor([0.0, 0.0, -2e30]), rtol=1e-6, atol=0)


def test_ids_near_the_limit_survive_the_keys(kernel) -> None:
    rows = torch.tensor([[[1.0], [2.0], [2.0], [-3.0]]])
    ids = torch.tensor([[2**31 - 1, 2**31 - 2, 0, 2**31 - 3]])
    got, _ = kernel.gathered_topk_logprob_triton(torch.ones(1, 1, 1), rows[0], ids, 4, rows=rows)
    assert got[0, 0].tolist() == [0, 2**31 - 2, 2**31 - 1, 2**31 - 3]


def test_whole_blocks_may_be_among_the_best(kernel) -> None:
    weight, ids = torch.arange(40.0)[:, None], torch.arange(40)[None]
    got, _ = kernel.gathered_topk_logprob_triton(torch.ones(1, 1, 1), weight, ids, 40, num_multiprocessors=100)
    assert got[0, 0].tolist() == list(range(39, -1, -1))


def test_real_numbers_agree_up_to_rounding(kernel) -> None:
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 10, 300, generator=draw), torch.randn(200, 300, generator=draw)
    ids = torch.randperm(200, generator=draw)[None, :150]
    got_ids, got = kernel.gathered_topk_logprob_triton(x, weight, ids, 10)
    log_prob = (x.double() @ weight[ids[0]].double().T).log_softmax(-1)
    at_ids = log_prob.gather(-1, (got_ids[..., None] == ids[0]).long().argmax(-1))
    torch.testing.assert_close(got.double(), at_ids, rtol=0, atol=ATOL_SUMS)
    torch.testing.assert_close(got.double(), log_prob.topk(10).values, rtol=0, atol=ATOL_SUMS)


def test_blocks_widen_while_they_fill_the_chip(kernel) -> None:
    widths = [kernel.widen_block(16, num_ids, 1, num_multiprocessors=132) for num_ids in (3072, 8448, 131072)]
    assert widths == [16, 32, 64]


def test_nothing_to_compute_launches_nothing(kernel) -> None:
    ids, log_prob = kernel.gathered_topk_logprob_triton(torch.zeros(1, 0, 3), torch.zeros(5, 3), IDS, 2)
    assert ids.shape == log_prob.shape == (1, 0, 2)


def test_float64_is_refused_by_name(kernel) -> None:
    with pytest.raises(TypeError, match="x must be float16, bfloat16 or float32, got torch.float64"):
        kernel.gathered_topk_logprob_triton(torch.zeros(1, 1, 3, dtype=torch.float64), torch.zeros(5, 3), IDS, 2)


X, HEAD = torch.zeros(2, 3, 4), torch.zeros(10, 4)


@pytest.mark.parametrize(
    ("k", "others", "error", "message"),
    [
        (0, {}, ValueError, r"k must be between 1 and min\(K, 64\) = 6, got 0"),
        (7, {}, ValueError, r"k must be between 1 and min\(K, 64\) = 6, got 7"),
        (65, {"draft_ids": torch.zeros(1, 90, dtype=torch.int64)}, ValueError, r"min\(K, 64\) = 64, got 65"),
        (2, {"x": X[0]}, ValueError, r"x must be \[B, n, D\]"),
        (2, {"draft_ids": IDS.int()}, TypeError, "draft_ids must be int64"),
        (2, {"bias": torch.zeros(9)}, ValueError, r"bias must be \[10\], got shape \(9,\)"),
        (2, {"bias": torch.zeros(10).half()}, TypeError, "bias must be torch.float32"),
        (2, {"count": torch.zeros(3, dtype=torch.int32)}, ValueError, r"count must be \[2 or 1\], got shape \(3,\)"),
        (2, {"count": torch.zeros(1)}, TypeError, "count must be torch.int32, got torch.float32"),
        (2, {"rows": torch.zeros(1, 5, 4)}, ValueError, r"rows must be \(1, 6, 4\), .* got shape \(1, 5, 4\)"),
        (2, {"rows": torch.zeros(1, 6, 4).double()}, TypeError, "rows must be torch.float32"),
    ],
)
def test_what_does_not_fit_is_refused(k: int, others, error, message: str) -> None:
    arguments = {"x": X, "weight": HEAD, "draft_ids": IDS} | others
    with pytest.raises(error, match=message):
        gathered_topk_logprob(k=k, **arguments)
