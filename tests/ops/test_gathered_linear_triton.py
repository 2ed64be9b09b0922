"""The kernel through Triton's interpreter against the reference, and compiled for GPUs that need not be here."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="needs Triton")
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from nanospec.ops.gathered_linear_reference import gathered_linear_reference

# Sums of up to 300 products of order 1 in float32, of another order than the reference's in float64.
ATOL = 1e-4
# One rounding of the result to its own precision; bfloat16 is not here, as the interpreter multiplies its bits.
RTOL = {torch.float32: 0.0, torch.float16: 2**-10}


def load_module(interpret: bool) -> ModuleType:
    """A copy of the kernel's module of our own, whatever the environment says: triton.jit looks there when it runs."""
    spec = importlib.util.find_spec("nanospec.ops.gathered_linear_triton")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", str(int(interpret)))
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def kernel() -> ModuleType:
    """Its kernels are interpreted, on the CPU."""
    return load_module(interpret=True)


def case(
    kernel: ModuleType, shape: tuple[int, int, int, int, int], *, is_shared: bool, dtype: torch.dtype, draw, **parts
) -> None:
    """Launch into an output full of NaN and compare. shape (B, n, D, V, K); parts: has_bias, has_rows, count."""
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

    assert kernel.gathered_linear_triton(x, weight, ids, bias, count, rows, out) is out
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
    dtype=st.sampled_from((torch.float32, torch.float16)),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40)
def test_matches_reference(kernel, shape, is_shared, has_bias, has_rows, count, dtype, seed) -> None:
    draw = torch.Generator().manual_seed(seed)
    case(kernel, shape, is_shared=is_shared, dtype=dtype, draw=draw, has_bias=has_bias, has_rows=has_rows, count=count)


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


TARGETS = [GPUTarget("cuda", arch, 32) for arch in (80, 90, 100)] + [GPUTarget("hip", "gfx942", 64)]
SHARED_MEMORY = 64 * 1024  # bytes a block may use on gfx942; CUDA devices have more


@pytest.mark.parametrize("num_tokens", [10, 64])
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target.arch))
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_compiles_ahead_of_time(target: GPUTarget, num_tokens: int, monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    module = load_module(interpret=False)
    kernel = module.gathered_linear_kernel
    block_n, block_k, block_d = module.block_sizes(num_tokens, torch.bfloat16)
    constants = {"HAS_ROWS": False, "HAS_BIAS": True, "HAS_COUNT": True}
    constants |= {"BLOCK_N": block_n, "BLOCK_K": block_k, "BLOCK_D": block_d}
    # As a launch with contiguous tensors, D = 2048 and K = 3072 would specialise it.
    constants |= dict.fromkeys(("x_stride_d", "source_stride_d", "ids_stride_k", "bias_stride", "out_stride_k"), 1)
    types = dict.fromkeys(("x", "source", "bias", "out"), "*bf16") | {"draft_ids": "*i64", "count": "*i32"}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    divisible = {
        (pos,): [["tt.divisibility", 16]]
        for pos, name in enumerate(kernel.arg_names)
        if name not in constants and name != "num_tokens"
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=divisible)
    options = {"num_warps": 4, "num_stages": module.NUM_STAGES}
    binary = compile(source, target=target, options=options)
    assert binary.asm["cubin" if target.backend == "cuda" else "hsaco"]
    assert binary.metadata.shared <= SHARED_MEMORY + 1024  # a few bytes of barriers where there is room for them
