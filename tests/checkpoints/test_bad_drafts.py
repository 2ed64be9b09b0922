"""Drafts that cannot work: each is refused with an error that names what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nanospec.checkpoints import load_eagle_drafter
from nanospec.target import Target

CONFIG: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
}  # fmt: skip
LAYER = "layers.0."


class Intruder:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return {
        "embed_tokens.weight": torch.zeros(37, 16),
        "fc.weight": torch.zeros(16, 32),
        f"{LAYER}self_attn.q_proj.weight": torch.zeros(16, 16),
        f"{LAYER}self_attn.k_proj.weight": torch.zeros(8, 16),
        f"{LAYER}self_attn.v_proj.weight": torch.zeros(8, 16),
        f"{LAYER}self_attn.o_proj.weight": torch.zeros(16, 16),
        f"{LAYER}mlp.gate_proj.weight": torch.zeros(24, 16),
        f"{LAYER}mlp.up_proj.weight": torch.zeros(24, 16),
        f"{LAYER}mlp.down_proj.weight": torch.zeros(16, 24),
        f"{LAYER}post_attention_layernorm.weight": torch.ones(16),
    }


def write_draft(directory: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({**CONFIG, **config}), encoding="utf-8")
    return directory


def test_the_untouched_draft_loads(tmp_path: Path, target: Target, tensors: dict[str, Tensor]) -> None:
    assert load_eagle_drafter(write_draft(tmp_path, tensors), target).shape.num_layers == 1


@pytest.mark.parametrize("part", ["self_attn.o_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.down_proj"])
def test_a_missing_tensor_is_named(tmp_path: Path, target: Target, tensors: dict[str, Tensor], part: str) -> None:
    del tensors[f"{LAYER}{part}.weight"]
    with pytest.raises(ValueError, match=rf"missing tensors \['{LAYER}{part}.weight'\], unused tensors \[\]"):
        load_eagle_drafter(write_draft(tmp_path, tensors), target)


@pytest.mark.parametrize("name", ["lm_head.weight", f"{LAYER}mlp.up_proj.bias", "norm.weight"])
def test_an_unused_tensor_is_named(tmp_path: Path, target: Target, tensors: dict[str, Tensor], name: str) -> None:
    tensors[name] = torch.zeros(16)
    with pytest.raises(ValueError, match=rf"unused tensors \['{name}'\]"):
        load_eagle_drafter(write_draft(tmp_path, tensors), target)


def test_another_architecture_is_refused(tmp_path: Path, target: Target, tensors: dict[str, Tensor]) -> None:
    del tensors["fc.weight"]
    with pytest.raises(ValueError, match=r"draft must be EAGLE-1/2 and hold 'fc.weight', got \['embed_tokens"):
        load_eagle_drafter(write_draft(tmp_path, tensors), target)


def test_a_hidden_size_that_is_not_the_targets(tmp_path: Path, target: Target, tensors: dict[str, Tensor]) -> None:
    tensors["fc.weight"] = torch.zeros(8, 16)
    with pytest.raises(ValueError, match=r"fc.weight must be \(16, 32\) .*hidden size 16, got \(8, 16\)"):
        load_eagle_drafter(write_draft(tmp_path, tensors, hidden_size=8), target)


def test_a_config_that_contradicts_the_tensors(tmp_path: Path, target: Target, tensors: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="config hidden_size must be 16 as in fc.weight, got 32"):
        load_eagle_drafter(write_draft(tmp_path, tensors, hidden_size=32), target)


def test_a_vocabulary_that_is_not_the_targets(tmp_path: Path, target: Target, tensors: dict[str, Tensor]) -> None:
    tensors["embed_tokens.weight"] = torch.zeros(38, 16)
    with pytest.raises(ValueError, match="draft vocabulary must be the target's 37 ids, got 38"):
        load_eagle_drafter(write_draft(tmp_path, tensors), target)


def test_a_wrong_shape_is_named(tmp_path: Path, target: Target, tensors: dict[str, Tensor]) -> None:
    tensors[f"{LAYER}mlp.down_proj.weight"] = torch.zeros(16, 23)
    with pytest.raises(ValueError, match=r"down_proj.weight' must have shape \(16, 24\), got \(16, 23\)"):
        load_eagle_drafter(write_draft(tmp_path, tensors), target)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_weight_that_is_quantised_is_named(
    tmp_path: Path, target: Target, tensors: dict[str, Tensor], dtype: torch.dtype
) -> None:
    tensors["fc.weight"] = tensors["fc.weight"].to(dtype)
    with pytest.raises(ValueError, match="weights must be float64, .*, got torch.(int8|float8_e4m3fn) in 'fc.weight'"):
        load_eagle_drafter(write_draft(tmp_path, tensors), target)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(
    tmp_path: Path, target: Target, tensors: dict[str, Tensor], value: float
) -> None:
    tensors[f"{LAYER}mlp.up_proj.weight"][3, 4] = value
    with pytest.raises(
        ValueError, match=r"weights must be finite, got NaN or infinity in 'layers.0.mlp.up_proj.weight'"
    ):
        load_eagle_drafter(write_draft(tmp_path, tensors), target)


@pytest.mark.parametrize(
    "setting",
    [{"num_attention_heads": None}, {"intermediate_size": "many"}, {"hidden_act": "nonsense"}, {"rms_norm_eps": None}],
    ids=lambda setting: next(iter(setting)),
)
def test_a_setting_of_the_wrong_kind_is_named(
    tmp_path: Path, target: Target, tensors: dict[str, Tensor], setting: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        load_eagle_drafter(write_draft(tmp_path, tensors, **setting), target)


def test_a_missing_setting_is_named(tmp_path: Path, target: Target, tensors: dict[str, Tensor]) -> None:
    write_draft(tmp_path, tensors)
    (tmp_path / "config.json").write_text('{"hidden_size": 16}')
    with pytest.raises(ValueError, match="config.json must hold 'num_attention_heads', got"):
        load_eagle_drafter(tmp_path, target)


@pytest.mark.parametrize(("text", "message"), [("{", "must be JSON"), ("[1]", "must hold a JSON object, got list")])
def test_a_broken_config_is_refused(
    tmp_path: Path, target: Target, tensors: dict[str, Tensor], text: str, message: str
) -> None:
    write_draft(tmp_path, tensors)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_eagle_drafter(tmp_path, target)


@pytest.mark.parametrize(("file", "message"), [("config.json", "a config.json"), ("model.safetensors", "one of model")])
def test_a_missing_file_is_named(
    tmp_path: Path, target: Target, tensors: dict[str, Tensor], file: str, message: str
) -> None:
    (write_draft(tmp_path, tensors) / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"checkpoint must hold {message}"):
        load_eagle_drafter(tmp_path, target)


@pytest.mark.parametrize("kept_bytes", [0, 5, 300])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_truncated_file_is_named(
    tmp_path: Path, target: Target, tensors: dict[str, Tensor], file: str, kept_bytes: int
) -> None:
    write_draft(tmp_path, tensors)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    whole = (tmp_path / file).read_bytes()
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / file).write_bytes(whole[:kept_bytes])
    with pytest.raises(ValueError, match=f"{file} must be a readable weight file"):
        load_eagle_drafter(tmp_path, target)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, target: Target, tensors: dict[str, Tensor]) -> None:
    (write_draft(tmp_path, tensors) / "model.safetensors").unlink()
    torch.save({**tensors, "fc.bias": Intruder(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="must be a readable weight file"):
        load_eagle_drafter(tmp_path, target)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_of_something_else_is_refused(tmp_path: Path, target: Target, tensors: dict[str, Tensor]) -> None:
    (write_draft(tmp_path, tensors) / "model.safetensors").unlink()
    torch.save({"state_dict": tensors}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="must hold a dictionary of tensors"):
        load_eagle_drafter(tmp_path, target)


@pytest.mark.parametrize("kind", ["absent", "file"])
def test_a_path_that_is_no_directory_is_refused(tmp_path: Path, target: Target, kind: str) -> None:
    path = tmp_path / "draft"
    if kind == "file":
        path.write_text("no checkpoint")
    with pytest.raises(FileNotFoundError, match="draft must be a checkpoint directory or a hub id, got"):
        load_eagle_drafter(path, target)


def test_the_vocabulary_of_the_config_counts_where_no_embedding_is_stored(
    tmp_path: Path, target: Target, tensors: dict[str, Tensor]
) -> None:
    del tensors["embed_tokens.weight"]
    with pytest.raises(ValueError, match="draft vocabulary must be the target's 37 ids, got 36"):
        load_eagle_drafter(write_draft(tmp_path, tensors, vocab_size=36), target)


def test_a_config_within_a_config_is_read(tmp_path: Path, target: Target, tensors: dict[str, Tensor]) -> None:
    directory = write_draft(tmp_path, tensors)
    (directory / "config.json").write_text(json.dumps({"model_type": "eagle", "model": CONFIG}), encoding="utf-8")
    assert load_eagle_drafter(directory, target).shape.intermediate_size == 24


@pytest.mark.parametrize(
    "config",
    [
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
        {"partial_rotary_factor": 0.5},
        {"partial_rotary_factor": "half"},
    ],
)
def test_rotation_of_a_part_of_a_head_is_refused(
    tmp_path: Path, target: Target, tensors: dict[str, Tensor], config: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="draft config partial_rotary_factor must be 1, as drafts rotate whole heads"):
        load_eagle_drafter(write_draft(tmp_path, tensors, **config), target)


@pytest.mark.parametrize("config", [{"partial_rotary_factor": 1.0}, {"rope_parameters": {"partial_rotary_factor": 1}}])
def test_rotation_of_whole_heads_may_be_said(
    tmp_path: Path, target: Target, tensors: dict[str, Tensor], config: dict[str, Any]
) -> None:
    drafter = load_eagle_drafter(write_draft(tmp_path, tensors, **config), target)
    drafter.reset(8)
    assert drafter.extend(torch.tensor([[1, 2]]), torch.zeros(1, 2, 16)).shape == (1, 1, 16)


def test_angles_of_other_heads_are_refused(tmp_path: Path, target: Target, tensors: dict[str, Tensor]) -> None:
    rope = {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 7, "long_factor": [1.0] * 7}
    with pytest.raises(ValueError, match="draft config must "):
        load_eagle_drafter(write_draft(tmp_path, tensors, rope_scaling=rope), target)
