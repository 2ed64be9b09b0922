"""Names and values of any length in the files of a checkpoint: the errors that show them stay short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nanospec.checkpoints import describe_checkpoint, load_drafter
from nanospec.checkpoints.draft_ids import read_id_list
from nanospec.checkpoints.files import read_tensors
from nanospec.checkpoints.trim import read_draft_head
from nanospec.target import Target
from nanospec.target_families import refuse_architecture
from tests.checkpoints import test_eagle, test_medusa
from tests.checkpoints.eagle3_files import CONFIG, official, write_draft

LONG = "x" * 200_000
LONGEST = 2000  # characters: eight names and the path of a temporary directory
MANY = {f"{LONG}{number}": torch.zeros(1) for number in range(9)}


def error_of(call, *arguments: Any) -> str:
    with pytest.raises((ValueError, NotImplementedError, TypeError)) as caught:
        call(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    "tensors",
    [
        MANY,
        official() | MANY,
        test_eagle.published_tensors() | MANY,
        test_medusa.published(test_medusa.heads()) | MANY,
        official() | {LONG: torch.zeros(1, 1, 1)},
        official() | {LONG: torch.zeros(1, dtype=torch.int64)},
        official() | {LONG: torch.full((1,), torch.nan)},
        official() | {LONG: torch.zeros(1), f"model.{LONG}": torch.zeros(1)},
    ],
    ids=["unknown", "EAGLE-3", "EAGLE-1", "Medusa", "deep", "integers", "NaN", "twice"],
)
def test_tensors_of_a_draft(tmp_path: Path, target: Target, tensors: dict[str, Tensor]) -> None:
    draft = write_draft(tmp_path, tensors)
    message = error_of(load_drafter, draft, target)
    assert len(message) < LONGEST
    assert "xxx..." in message


def test_tensors_that_are_no_draft(tmp_path: Path) -> None:
    draft = write_draft(tmp_path, MANY)
    assert len(error_of(read_draft_head, draft)) < LONGEST
    assert len(error_of(read_id_list, draft, 37)) < LONGEST
    problems = describe_checkpoint(draft).problems
    assert problems
    assert len(" ".join(problems)) < LONGEST


@pytest.mark.parametrize("listed", [{}, {"a": "a.safetensors"}, {"a": "a.safetensors", LONG: "b.safetensors"}])
def test_an_index(tmp_path: Path, listed: dict[str, str]) -> None:
    save_file({"a": torch.zeros(1), LONG: torch.zeros(1)}, tmp_path / "a.safetensors")
    save_file({"b": torch.zeros(1)}, tmp_path / "b.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    assert len(error_of(read_tensors, tmp_path)) < LONGEST


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": LONG},
        {"rms_norm_eps": LONG},
        {"hidden_act": LONG},
        {"rope_scaling": {"rope_type": LONG}},
        {"rope_parameters": {LONG: LONG, "rope_type": "yarn"}},
        {"partial_rotary_factor": LONG},
        {"norm_output": LONG},
        {"eagle_aux_hidden_state_layer_ids": LONG},
        {"eagle_aux_hidden_state_layer_ids": list(range(20_000))},
        {"eagle_aux_hidden_state_layer_ids": [True] * 20_000},
    ],
)
def test_a_config_of_a_draft(tmp_path: Path, target: Target, change: dict[str, Any]) -> None:
    assert len(error_of(load_drafter, write_draft(tmp_path, official(), {**CONFIG, **change}), target)) < LONGEST


def test_a_config_without_sizes(tmp_path: Path, target: Target) -> None:
    assert len(error_of(load_drafter, write_draft(tmp_path, official(), {LONG: 1}), target)) < LONGEST


def test_a_model_type() -> None:
    assert len(error_of(refuse_architecture, {"model_type": LONG})) < LONGEST
