"""torch.compile as the decoder uses it: one graph for every context length, and graphs that go with their decoder."""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

DRAFT_BACKEND = "nanospec"
INNER_BACKENDS = ("inductor", "aot_eager", "eager")
_Function = TypeVar("_Function", bound=Callable[..., Any])
_names = itertools.count()


def inner_backend(compile: bool | str) -> str | None:
    """The backend that makes the kernels, None for no compilation; True is Inductor.

    Raises ValueError for another name, TypeError for what is neither bool nor str.
    """
    if not isinstance(compile, bool | str):
        raise TypeError(f"compile must be True, False or one of {', '.join(INNER_BACKENDS)}, got {compile!r}")
    if isinstance(compile, bool):
        return INNER_BACKENDS[0] if compile else None
    if compile not in INNER_BACKENDS:
        raise ValueError(f"compile must be True, False or one of {', '.join(INNER_BACKENDS)}, got {compile!r}")
    return compile


def compile_apart(function: _Function, backend: str, options: Mapping[str, Any] | None = None) -> _Function:
    """torch.compile of `function` into whole graphs that no other decoder shares.

    Dynamo keeps graphs, and counts them against its limit, by code object: the copy made here has its own, so that
    decoders do not use up each other's limit and that their graphs are freed with them.
    """
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_names)}")
    own = types.FunctionType(code, function.__globals__, code.co_name, function.__defaults__, function.__closure__)
    settings = {**(options or {}), "guard_filter_fn": _guard_tensors_not_modules}
    return torch.compile(own, backend=backend, fullgraph=True, options=settings)  # type: ignore[return-value]


def mark_growing(tensor: Tensor, *dims: int) -> Tensor:
    """The tensor, marked: its first graph already holds for every size of `dims` (0 and 1 aside)."""
    torch._dynamo.maybe_mark_dynamic(tensor, dims)
    return tensor


def _guard_tensors_not_modules(guards: Sequence[Any]) -> list[bool]:
    """Which guards are checked at every call: not what modules look like inside, but that their tensors still fit.

    The modules are the decoder's own; looking at all of them takes as long as a drafted level.
    """
    kept = torch.compiler.skip_guard_on_all_nn_modules_unsafe(guards)
    return [keep or guard.guard_type == "TENSOR_MATCH" for keep, guard in zip(kept, guards, strict=True)]
