"""Whatever is wrong with a draft's files, loading ends with an error that says so, and never runs what they hold."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanospec.checkpoints import load_drafter
from nanospec.target import Target
from tests.checkpoints import eagle3_files, test_eagle
from tests.checkpoints.eagle3_files import CONFIG, official, speculators_config

TYPED = (ValueError, TypeError, NotImplementedError, FileNotFoundError)
WRONG = (None, "x", "", -1, 0, 2.5, 10**9, True, [], [1, "a"], {}, {"rope_theta": "x"})
FUZZ = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def loads_or_says_why(directory: Path, target: Target) -> None:
    with suppress(*TYPED):
        load_drafter(directory, target)


@FUZZ
@given(
    file=st.sampled_from(["model.safetensors", "pytorch_model.bin"]),
    kept=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=3),
)
def test_damaged_weight_files(tmp_path: Path, target: Target, file: str, kept: float, flips: list) -> None:
    for path in tmp_path.iterdir():
        path.unlink()
    path = eagle3_files.write_draft(tmp_path, official(), file=file) / file
    content = bytearray(path.read_bytes())
    for place, change in flips:
        content[int(place * min(len(content) - 1, 3000))] ^= change  # headers lie in front
    path.write_bytes(content[: max(int(kept * len(content)), 0)] if kept < 0.5 else content)
    loads_or_says_why(tmp_path, target)


@pytest.mark.parametrize("kind", ["eagle", "eagle3", "speculators"])
def test_settings_of_the_wrong_kind(tmp_path: Path, target: Target, kind: str) -> None:
    config: dict[str, Any] = {"eagle": test_eagle.CONFIG, "eagle3": CONFIG, "speculators": speculators_config()}[kind]
    extra = ("rope_theta", "rope_scaling", "rope_parameters", "head_dim", "eagle_config", "norm_output", "fc_norm")
    if kind == "eagle":
        test_eagle.write_draft(tmp_path, test_eagle.published_tensors())
    else:
        eagle3_files.write_draft(tmp_path, official())
    for key in (*config, *extra):
        for value in WRONG:
            (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
            loads_or_says_why(tmp_path, target)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_of_a_dtype_that_is_none(tmp_path: Path, target: Target, dtype: torch.dtype) -> None:
    for name in official():
        if name in ("d2t", "t2d"):
            continue
        tensors = official()
        tensors[name] = tensors[name].to(dtype)
        directory = eagle3_files.write_draft(tmp_path, tensors, file="pytorch_model.bin")
        with pytest.raises(ValueError, match="weights must be float64, float32, bfloat16, float16, got"):
            load_drafter(directory, target)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint32, torch.uint8])
def test_packed_weights_are_refused_by_their_dtype(tmp_path: Path, target: Target, dtype: torch.dtype) -> None:
    tensors = official()
    tensors["fc.weight"] = torch.zeros(tensors["fc.weight"].shape, dtype=dtype)
    with pytest.raises(ValueError, match=f"weights must be float64, .*, got {dtype} in 'fc.weight'"):
        load_drafter(eagle3_files.write_draft(tmp_path, tensors), target)


@pytest.mark.parametrize("name", ["d2t", "t2d"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.float32])
def test_maps_of_another_dtype_load_or_are_refused(
    tmp_path: Path, target: Target, name: str, dtype: torch.dtype
) -> None:
    tensors = official()
    tensors[name] = tensors[name].to(dtype)
    loads_or_says_why(eagle3_files.write_draft(tmp_path, tensors, file="pytorch_model.bin"), target)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 3, 4)])
def test_tensors_of_another_rank(tmp_path: Path, target: Target, shape: tuple[int, ...]) -> None:
    for name in official():
        tensors = {**official(), name: torch.zeros(shape)}
        directory = eagle3_files.write_draft(tmp_path, tensors)
        with pytest.raises(ValueError, match="draft|weights|repetitions"):
            load_drafter(directory, target)
    for name in test_eagle.published_tensors():
        tensors = {**test_eagle.published_tensors(), name: torch.zeros(shape)}
        with pytest.raises(ValueError, match="draft|weights"):
            load_drafter(test_eagle.write_draft(tmp_path / "e", tensors), target)
