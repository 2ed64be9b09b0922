"""Saving is the inverse of loading, under the names that other engines read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from nanospec.checkpoints import load_drafter, save_drafter
from nanospec.checkpoints.eagle import write_checkpoint
from nanospec.drafters.eagle3 import Eagle3Drafter
from nanospec.target import Target
from tests.checkpoints import eagle3_files, test_eagle, test_medusa
from tests.checkpoints.eagle3_files import CONFIG, HIDDEN, full_vocabulary, official, random_tensors, speculators
from tests.checkpoints.test_eagle3 import states_of

NORMS = random_tensors({**{f"fc_norm.{i}.weight": (HIDDEN,) for i in range(3)}, "input_norm.weight": (3 * HIDDEN,)})
ALL_ON = {"norm_output": True, "norm_before_residual": True, "rope_theta": 1e6}
LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
VARIANTS: dict[str, tuple[dict[str, Tensor], dict[str, Any]]] = {
    "official": (official(), CONFIG),
    "full vocabulary": (full_vocabulary(with_maps=False), CONFIG),
    "all norms": ({**official(), **NORMS}, {**CONFIG, **ALL_ON}),
    "other layers": (official(), {**CONFIG, "eagle_aux_hidden_state_layer_ids": [2, 3, 4]}),
    "scaled rotation": (official(), {**CONFIG, "rope_theta": 5e5, "rope_scaling": LLAMA3_ROPE}),
    "own embedding": (
        {**official(hidden=8), "embed_tokens.weight": torch.arange(37.0 * 8).view(37, 8)},
        {**CONFIG, "hidden_size": 8, "head_dim": 4},
    ),
}


@pytest.mark.parametrize("layout", ["official", "speculators"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_saving_and_loading_eagle_3_is_the_identity(
    tmp_path: Path,
    target: Target,
    variant: str,
    layout: Any,
) -> None:
    drafter = load_drafter(eagle3_files.write_draft(tmp_path / "a", *VARIANTS[variant]), target)
    save_drafter(drafter, tmp_path / "new" / "b", layout, target)
    again = load_drafter(tmp_path / "new" / "b", target)
    assert isinstance(drafter, Eagle3Drafter)
    assert isinstance(again, Eagle3Drafter)
    state = again.state_dict()
    assert state.keys() == drafter.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in drafter.state_dict().items())
    assert (again.shape, again.wiring) == (drafter.shape, drafter.wiring)
    assert (again.target_ids is None) == (drafter.target_ids is None)
    if drafter.target_ids is not None:
        assert torch.equal(again.target_ids, drafter.target_ids)
    assert torch.equal(states_of(again), states_of(drafter))


def test_names_and_numbers_are_those_that_were_read(tmp_path: Path, target: Target) -> None:
    for layout, tensors in (("official", official()), ("speculators", speculators())):
        drafter = load_drafter(eagle3_files.write_draft(tmp_path / "a", tensors), target)
        save_drafter(drafter, tmp_path / "b", layout)
        saved = load_file(tmp_path / "b" / "model.safetensors")
        assert saved.keys() == tensors.keys()
        assert all(torch.equal(saved[name], tensor) for name, tensor in tensors.items())
        assert all(saved[name].dtype == tensor.dtype for name, tensor in tensors.items())


def test_further_layers_and_norms_of_heads_need_the_layout_of_speculators(
    tmp_path: Path,
    target: Target,
) -> None:
    drafter = load_drafter(eagle3_files.write_draft(tmp_path / "a", speculators(2, qk_norm=True)), target)
    with pytest.raises(ValueError, match="layout must be 'speculators' for a drafter of 2 layers, got 'official'"):
        save_drafter(drafter, tmp_path / "b")
    save_drafter(drafter, tmp_path / "b", "speculators", target)
    assert torch.equal(states_of(load_drafter(tmp_path / "b", target)), states_of(drafter))
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["transformer_layer_config"]["model_type"] == "qwen3"
    assert config["speculators_model_type"] == "eagle3"
    assert config["speculators_config"]["verifier"]["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize(("num_layers", "bias"), [(1, False), (2, True)])
def test_saving_and_loading_eagle_1_is_the_identity(
    tmp_path: Path,
    target: Target,
    num_layers: int,
    bias: bool,
) -> None:
    tensors = test_eagle.published_tensors(num_layers, bias, bias)
    drafter = load_drafter(test_eagle.write_draft(tmp_path / "a", tensors), target)
    save_drafter(drafter, tmp_path / "b")
    again = load_drafter(tmp_path / "b", target)
    assert again.shape == drafter.shape
    assert torch.equal(test_eagle.states_of(again), test_eagle.states_of(drafter))
    # A true "bias" is read as biases of attention by some engines; absent means a bias of fc.
    assert json.loads((tmp_path / "b" / "config.json").read_text()).get("bias") is (None if bias else False)


@pytest.mark.parametrize("layout", [test_medusa.published, test_medusa.vllm])
@pytest.mark.parametrize(("outputs", "num_layers", "bias"), [("own", 1, True), ("none", 2, False), ("own", 0, False)])
def test_saving_and_loading_medusa_is_the_identity(
    tmp_path: Path, target: Target, layout: Any, outputs: str, num_layers: int, bias: bool
) -> None:
    tensors = layout(test_medusa.heads(num_layers, bias=bias), outputs)
    drafter = load_drafter(test_medusa.write(tmp_path / "a", tensors), target)
    save_drafter(drafter, tmp_path / "b", target=target)
    again = load_drafter(tmp_path / "b", target)
    assert again.shape == drafter.shape
    state = again.state_dict()
    assert all(torch.equal(state[name], value) for name, value in drafter.state_dict().items())
    saved, config = (
        load_file(tmp_path / "b" / "model.safetensors"),
        json.loads((tmp_path / "b" / "config.json").read_text()),
    )
    if layout is test_medusa.published:
        assert saved.keys() == tensors.keys()
        assert all(torch.equal(saved[name], tensor) for name, tensor in tensors.items())
    assert (config["medusa_num_heads"], config["medusa_num_layers"]) == (test_medusa.HEADS, num_layers)


def test_medusa_heads_that_the_layout_has_no_names_for_are_refused(tmp_path: Path, target: Target) -> None:
    shared = load_drafter(test_medusa.write(tmp_path / "a", test_medusa.vllm(test_medusa.heads(), "shared")), target)
    with pytest.raises(ValueError, match="output rows of all ids in every head or in none, got 1 matrices of 37 rows"):
        save_drafter(shared, tmp_path / "c")
    some = {**test_medusa.vllm(test_medusa.heads(num_rows=4)), "token_map": test_medusa.TOKEN_MAP}
    with pytest.raises(ValueError, match="output rows of all ids in every head or in none, got 5 matrices of 4 rows"):
        save_drafter(load_drafter(test_medusa.write(tmp_path / "b", some), target), tmp_path / "c")
    with pytest.raises(ValueError, match="layout must be 'official' for Medusa heads, got 'speculators'"):
        save_drafter(shared, tmp_path / "c", "speculators")
    assert not (tmp_path / "c").exists()


def test_layouts_that_are_none_are_refused(tmp_path: Path, target: Target) -> None:
    drafter = load_drafter(test_eagle.write_draft(tmp_path / "a", test_eagle.published_tensors()), target)
    with pytest.raises(ValueError, match="layout must be one of official, speculators, got 'gguf'"):
        save_drafter(drafter, tmp_path / "b", "gguf")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layout must be 'official' for an EAGLE-1/2 drafter, got 'speculators'"):
        save_drafter(drafter, tmp_path / "b", "speculators")


def test_tensors_on_one_memory_are_saved_each_as_its_own(tmp_path: Path, target: Target) -> None:
    """Views of one tensor, the same tensor twice, and parts side by side, which may stay where they are."""
    whole = torch.arange(24.0).view(4, 6)
    tensors = {"a": whole, "b": whole, "c": whole[1:3], "d": whole[:, :2], "e": whole[3:], "f": torch.empty(0)}
    write_checkpoint(tmp_path / "a", tensors, {})
    saved = load_file(tmp_path / "a" / "model.safetensors")
    assert saved.keys() == tensors.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in tensors.items())

    shared = official()
    shared["midlayer.hidden_norm.weight"] = shared["midlayer.input_layernorm.weight"]
    drafter = load_drafter(eagle3_files.write_draft(tmp_path / "b", shared, CONFIG, "pytorch_model.bin"), target)
    save_drafter(drafter, tmp_path / "c")
    assert torch.equal(states_of(load_drafter(tmp_path / "c", target)), states_of(drafter))
