"""Weight files of a checkpoint: one file or shards, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nanospec.checkpoints.files import read_tensors

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return {
        "a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.bfloat16), "c": torch.arange(4),
        "d": torch.tensor([True, False]),
    }  # fmt: skip


def write_shards(directory: Path, tensors: dict[str, Tensor], ending: str = "safetensors") -> Path:
    names = sorted(tensors)
    places = {name: SHARDS[name > "b"].replace("safetensors", ending) for name in names}
    for shard in set(places.values()):
        part = {name: tensors[name] for name in names if places[name] == shard}
        if ending == "bin":
            torch.save(part, directory / shard)
        else:
            save_file(part, directory / shard)
    index = INDEX if ending == "safetensors" else "pytorch_model.bin.index.json"
    (directory / index).write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")
    return directory


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards_are_one_checkpoint(tmp_path: Path, tensors: dict[str, Tensor], ending: str) -> None:
    assert_same(read_tensors(write_shards(tmp_path, tensors, ending)), tensors)


def test_safetensors_are_preferred(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    torch.save({"other": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert_same(read_tensors(tmp_path), tensors)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_specs_have_shapes_and_dtypes_and_no_numbers(tmp_path: Path, tensors: dict[str, Tensor], file: str) -> None:
    if file.endswith("bin"):
        torch.save(tensors, tmp_path / file)
    else:
        save_file(tensors, tmp_path / file)
    specs = read_tensors(tmp_path, specs_only=True)
    assert specs.keys() == tensors.keys()
    assert all(spec.is_meta for spec in specs.values())
    assert all((specs[n].shape, specs[n].dtype) == (t.shape, t.dtype) for n, t in tensors.items())


def test_a_missing_shard_is_named(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    (write_shards(tmp_path, tensors) / SHARDS[1]).unlink()
    with pytest.raises(FileNotFoundError, match=rf"all shards that {INDEX} lists, missing \['{SHARDS[1]}'\]"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"e": SHARDS[0]}, r"missing \['e'\], not listed \[\]"), ({"a": None}, r"missing \[\], not listed \['a'\]")],
)
def test_an_index_that_does_not_match_its_shards(
    tmp_path: Path, tensors: dict[str, Tensor], change: dict[str, str | None], message: str
) -> None:
    index = write_shards(tmp_path, tensors) / INDEX
    content = json.loads(index.read_text())
    places = {**content["weight_map"], **change}
    content["weight_map"] = {name: shard for name, shard in places.items() if shard is not None}
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"must list what its shards hold: {message}"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("shard", ["../model.safetensors", "sub/model.safetensors", "run.py", 3])
def test_an_index_cannot_point_outside_its_directory(tmp_path: Path, shard: object) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ValueError, match="must list shards by file name, got"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": [1]}'])
def test_an_index_without_a_map_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(ValueError, match="must hold a 'weight_map' of tensor names"):
        read_tensors(tmp_path)
