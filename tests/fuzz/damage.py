"""Strategies that damage valid files: bytes, JSON, and named tensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.fuzz.valid_files import Named

HUGE = (10**9, 10**12, 2**31, 2**63, 2**64, 10**30, 10**400)
NASTY = (
    None, True, "", "x", "../x", "/dev/zero", -1, 0, 1, 2, 3, 5, 1e-300, 1e300, 2.5, *HUGE, [], [1, "a"], {}, {"": 0},
    {"rope_type": "x"}, {"rope_type": "yarn", "factor": 1e9}, {"rope_theta": "x"}, ["full_attention"] * 3, "int8",
)  # fmt: skip
DTYPES = (
    torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool,
    torch.float8_e4m3fn, torch.complex64,
)  # fmt: skip
nasty = st.sampled_from(NASTY)
finite = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.one_of(nasty, nasty, nasty, st.integers(), finite, st.floats(), st.text(max_size=8))
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def json_text(value: object) -> bytes:
    """NaN and infinities as Python writes them."""
    return json.dumps(value).encode("utf-8", "surrogatepass")


@st.composite
def changed_configs(draw: st.DrawFn, config: dict[str, Any], more_keys: Iterable[str] = ()) -> bytes:
    """The config with one to three keys of any nesting set to anything, or left out."""
    changed = json.loads(json.dumps(config))
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        level = changed
        nested = [key for key, value in level.items() if isinstance(value, dict)]
        if nested and draw(st.booleans()):
            level = level[draw(st.sampled_from(nested))]
        key = draw(st.sampled_from([*level, *more_keys, "x"]))
        if draw(st.integers(0, 5)) == 0:
            level.pop(key, None)
        else:
            level[key] = draw(json_values)
    return json_text(changed)


@st.composite
def damaged(draw: st.DrawFn, content: bytes, header: int | None = None) -> bytes:
    """Bytes flipped (in the first `header` of them, where given), cut out, doubled, put in, or the end cut off."""
    body = bytearray(content)
    end = min(header or len(body), len(body))
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        place = draw(st.integers(0, max(end - 1, 0)))
        kind = draw(st.sampled_from(["flip"] * 5 + ["bit"] * 5 + ["cut", "remove", "insert", "double"]))
        length = draw(st.integers(1, 9))
        if kind == "flip":
            body[place : place + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "bit" and place < len(body):
            body[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del body[place:]
        elif kind == "remove":
            del body[place : place + length]
        elif kind == "insert":
            body[place:place] = draw(st.binary(min_size=length, max_size=length))
        else:
            body[place:place] = body[place : place + length]
    return bytes(body)


@st.composite
def changed_tensors(draw: st.DrawFn, tensors: Mapping[str, Tensor]) -> Named:
    """One to three tensors renamed, left out, of another dtype or shape, exchanged, or one more."""
    changed = Named(tensors)
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        name = draw(st.sampled_from(sorted(changed)))
        kind = draw(st.sampled_from(["rename", "drop", "dtype", "shape", "exchange", "add", "number"]))
        tensor = changed[name]
        if kind == "rename":
            changed[draw(names(sorted(changed)))] = changed.pop(name)
        elif kind == "drop" and len(changed) > 1:
            del changed[name]
        elif kind == "dtype" and not tensor.is_complex():
            changed[name] = tensor.to(draw(st.sampled_from(DTYPES)))
        elif kind == "shape":
            changed[name] = draw(reshaped(tensor))
        elif kind == "exchange":
            other = draw(st.sampled_from(sorted(changed)))
            changed[name], changed[other] = changed[other], changed[name]
        elif kind == "add":
            changed[draw(names(sorted(changed)))] = draw(reshaped(tensor))
        elif tensor.is_floating_point() and tensor.dtype.itemsize > 1 and tensor.numel():
            changed[name] = tensor.flatten().index_fill(0, torch.tensor([0]), torch.inf).view(tensor.shape)
    return changed


def names(stored: list[str]) -> st.SearchStrategy[str]:
    """Names that some part of the loader may look for, and names that none does."""
    known = (
        "lm_head.weight", "d2t", "t2d", "token_map", "fc.bias", "norm.weight", "0.0.linear.weight",
        "99.99.linear.weight", "model.model.fc.weight", "layers.0.hidden_norm.weight", "",
    )  # fmt: skip
    far_out = (
        "layers.1000000000.mlp.up_proj.weight", "1000000000.0.linear.weight", "layers.٣.x", "layers.-1.x",
        "x" * 20_000,
    )  # fmt: skip
    edited = st.sampled_from(stored).map(lambda name: name.replace("0", "1", 1))
    return st.one_of(st.sampled_from(known), st.sampled_from(far_out), edited, st.text(max_size=6))


@st.composite
def reshaped(draw: st.DrawFn, tensor: Tensor) -> Tensor:
    kind = draw(st.sampled_from(["flat", "transposed", "empty", "scalar", "cut", "deep", "any"]))
    if kind == "flat":
        return tensor.flatten()
    if kind == "transposed":
        return tensor.mT.contiguous() if tensor.dim() == 2 else tensor[None]
    if kind == "empty":
        return tensor.new_empty(0, *tensor.shape[1:])
    if kind == "scalar":
        return tensor.new_zeros(())
    if kind == "cut":
        return tensor[: max(len(tensor) // 2, 1)].clone() if tensor.dim() else tensor
    if kind == "deep":
        return tensor[None, None]
    return tensor.new_zeros(draw(st.lists(st.integers(0, 40), max_size=3)))
