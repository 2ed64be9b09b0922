"""What tests of kernels share: interpreting them on a CPU, and compiling them for GPUs that need not be here."""

from __future__ import annotations

import functools
import importlib.util
import re
import subprocess
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("triton", reason="needs Triton")
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, compile
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction

TARGETS = [GPUTarget("cuda", arch, 32) for arch in (80, 90, 100)] + [GPUTarget("hip", "gfx942", 64)]
# Bytes of shared memory that a block may use: all of a gfx942's, and what also consumer cards of compute capability 8
# and later have.
SHARED_MEMORY = {"hip": 64 * 1024, "cuda": 99 * 1024}


def load_interpreted(module_name: str) -> ModuleType:
    """A copy of the module of our own whose kernels run on the CPU: triton.jit looks at the environment when it runs.

    Compiled kernels of the same process stay as they are. Interpreted products of bfloat16 are wrong: test in others.
    """
    spec = importlib.util.find_spec(module_name)
    assert spec is not None, f"no module {module_name}"
    assert spec.loader is not None, f"{module_name} is not a file"
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        spec.loader.exec_module(module)
    return module


@functools.cache
def _rewritten(function: Callable[..., Any]) -> Callable[..., Any]:
    return interpreter.InterpretedFunction(function).rewrite()


def _interpret_call(self: JITFunction, *args: Any, **kwargs: Any) -> Any:
    """What an interpreted kernel calls of modules imported before it, tl.max among them, is interpreted as well."""
    scope = interpreter._patch_lang(self.fn)
    try:
        return _rewritten(self.fn)(*args, **kwargs)
    finally:
        scope.restore()


JITFunction.__call__ = _interpret_call  # else every such call is an error


def compile_ahead(
    kernel: JITFunction,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    target: GPUTarget,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    num_warps: int = 4,
    num_stages: int | None = None,
    indivisible: Collection[str] = (),
) -> CompiledKernel:
    """Compile for `target` as a launch would specialise it; needs no GPU.

    signature    types of the arguments that are not "i32", such as "*bf16" or "*i64"
    constants    constexpr arguments, and strides of 1
    indivisible  arguments not promised to be divisible by 16, besides those that the kernel does not specialise
    """
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # as it is while unset, but without a warning
    types = {name: "constexpr" if name in constants else signature.get(name, "i32") for name in kernel.arg_names}
    divisible = {
        (pos,): [["tt.divisibility", 16]]
        for pos, param in enumerate(kernel.params)
        if param.name not in constants and param.name not in indivisible and not param.do_not_specialize
    }
    source = ASTSource(fn=kernel, signature=types, constexprs=dict(constants), attrs=divisible)
    options = {"num_warps": num_warps} | ({} if num_stages is None else {"num_stages": num_stages})
    return compile(source, target=target, options=options)


def assert_fits(compiled: CompiledKernel, target: GPUTarget, max_spills: int = 0) -> None:
    """The kernel keeps its values in registers, and shared memory suffices for one block."""
    spills = count_spills(compiled, target)
    assert spills <= max_spills, f"{spills} spilled on {target.arch}, at most {max_spills} expected"
    limit = SHARED_MEMORY[target.backend]
    assert compiled.metadata.shared <= limit, f"{compiled.metadata.shared} bytes shared on {target.arch}, over {limit}"


def count_spills(compiled: CompiledKernel, target: GPUTarget) -> int:
    """Spilled registers on gfx942; on CUDA the bytes of a thread's stack, where spills go."""
    if target.backend == "hip":
        found = re.findall(r"\.[sv]gpr_spill_count:\s*(\d+)", compiled.asm["amdgcn"])
        assert len(found) == 2, "the compiler reported no spill counts"
        return sum(map(int, found))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        report = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    found = re.findall(r"(?:STACK|LOCAL):(\d+)", report)
    assert len(found) == 2, f"cuobjdump reported no stack: {report}"
    return sum(map(int, found))
