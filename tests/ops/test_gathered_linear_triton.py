"""The kernel through Triton's interpreter against the reference."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec.ops.gathered_linear_reference import gathered_linear_reference
from tests.ops.triton_kernels import load_interpreted

# Sums of up to 300 products of order 1 in float32, of another order than the reference's in float64.
ATOL = 1e-4
# One rounding of the result to its own precision; bfloat16 is not here, as the interpreter multiplies its bits.
RTOL = {torch.float32: 0.0, torch.float16: 2**-10}


@pytest.fixture(scope="module")
def kernel() -> ModuleType:
    return load_interpreted("nanospec.ops.gathered_linear_triton")


def case(
    kernel: ModuleType, shape: tuple[int, int, int, int, int], *, is_shared: bool, dtype: torch.dtype, draw, **parts
) -> None:
    """Launch into an output full of NaN and compare.

    shape (B, n, D, V, K); parts: has_bias, has_rows, count and perhaps num_multiprocessors.
    """
    batch_size, num_tokens, hidden_size, vocab_size, num_ids = shape
    num_vocabs = 1 if is_shared else batch_size
    x = torch.randn(batch_size, hidden_size, num_tokens, generator=draw).to(dtype).mT  # strided
    weight = torch.randn(vocab_size, hidden_size, generator=draw).to(dtype)
    ids = torch.randint(vocab_size, (num_vocabs, num_ids), generator=draw)
    bias = torch.randn(vocab_size, generator=draw).to(dtype) if parts["has_bias"] else None
    count = None if parts["count"] is None else torch.tensor(parts["count"][:num_vocabs], dtype=torch.int32)
    rows = None
    if parts["has_rows"]:
        rows = weight[ids]
        if count is not None:  # what was never written must not show
            rows = rows.masked_fill((torch.arange(num_ids) >= count[:, None])[..., None], float("nan"))
    out = torch.full((batch_size, num_tokens, num_ids), float("nan"), dtype=dtype)

    num_multiprocessors = parts.get("num_multiprocessors", 1)
    assert kernel.gathered_linear_triton(x, weight, ids, bias, count, rows, out, num_multiprocessors) is out
    wide = [None if part is None else part.double() for part in (x, weight, bias, rows)]
    expected = gathered_linear_reference(wide[0], wide[1], ids, wide[2], count, wide[3])
    torch.testing.assert_close(out.double(), expected, rtol=RTOL[dtype], atol=ATOL)


@given(
    shape=st.tuples(
        st.integers(1, 3),
        st.sampled_from((1, 2, 10, 17, 70)),
        st.sampled_from((1, 7, 64, 129, 300)),
        st.integers(1, 50),
        st.integers(1, 60),
    ),
    is_shared=st.booleans(),
    has_bias=st.booleans(),
    has_rows=st.booleans(),
    count=st.none() | st.lists(st.sampled_from((0, 1, 15, 16, 17, 60)), min_size=3, max_size=3),
    num_multiprocessors=st.sampled_from((1, 100)),
    dtype=st.sampled_from((torch.float32, torch.float16)),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40)
def test_matches_reference(kernel, shape, is_shared, dtype, seed, **parts) -> None:
    case(kernel, shape, is_shared=is_shared, dtype=dtype, draw=torch.Generator().manual_seed(seed), **parts)


@pytest.mark.parametrize("dtype", list(RTOL))
@pytest.mark.parametrize("count", [None, [20, 0, 45]])
def test_parts_of_a_split_product_add_up(kernel, dtype: torch.dtype, count: list[int] | None) -> None:
    hidden_size = 1111 if dtype == torch.float32 else 2222
    _, block_k, block_d = kernel.block_sizes(10, dtype)
    split_size = kernel.split_dims(hidden_size, block_d, 3 * -(-45 // block_k), 40)
    assert 1 < -(-hidden_size // split_size) < -(-hidden_size // block_d)
    parts = {"has_bias": True, "has_rows": False, "count": count, "num_multiprocessors": 40}
    draw = torch.Generator().manual_seed(0)
    case(kernel, (3, 10, hidden_size, 50, 45), is_shared=False, dtype=dtype, draw=draw, **parts)


def test_only_few_programs_share_a_column(kernel) -> None:
    split_dims = kernel.split_dims
    assert split_dims(4096, 128, num_blocks=132, num_multiprocessors=132) == 4096  # every multiprocessor has one
    assert split_dims(4096, 128, num_blocks=64, num_multiprocessors=132) == 4096 // 4
    assert split_dims(4096, 128, num_blocks=1, num_multiprocessors=132) == 4096 // 8  # no fewer than four steps each
    assert split_dims(300, 128, num_blocks=1, num_multiprocessors=132) == 384


@pytest.mark.parametrize("count", [0, 45])
def test_empty_and_full_vocabularies_match_the_reference(kernel, count: int) -> None:
    draw = torch.Generator().manual_seed(0)
    parts = {"has_bias": True, "has_rows": False, "count": [count]}
    case(kernel, (1, 10, 33, 45, 45), is_shared=True, dtype=torch.float32, draw=draw, **parts)


def test_rows_of_ids_beyond_count_are_not_read(kernel) -> None:
    x, weight = torch.ones(1, 2, 3), torch.ones(5, 3)
    ids = torch.tensor([[4] + [2**62] * 39])  # any read of these would leave the process
    logits = kernel.gathered_linear_triton(x, weight, ids, weight[:, 0], torch.tensor([1], dtype=torch.int32))
    assert logits[..., 0].tolist() == [[4.0, 4.0]]
    assert logits[..., 1:].eq(float("-inf")).all()


def test_nothing_to_compute_launches_nothing(kernel) -> None:
    ids = torch.zeros(1, 4, dtype=torch.int64)
    assert kernel.gathered_linear_triton(torch.zeros(1, 0, 3), torch.zeros(5, 3), ids).shape == (1, 0, 4)


def test_float64_is_refused_by_name(kernel) -> None:
    x, ids = torch.zeros(1, 1, 3, dtype=torch.float64), torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(TypeError, match="x must be float16, bfloat16 or float32, got torch.float64"):
        kernel.gathered_linear_triton(x, x[0], ids)
