"""Drafts in the published EAGLE-1/2 layout, written by hand, against the drafter that is made of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanospec.checkpoints import load_eagle_drafter, save_eagle_drafter
from nanospec.drafters.eagle import EagleDrafter
from nanospec.target import Target

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 16, 24, 4, 2, 4, 37
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "num_hidden_layers": 1, "hidden_act": "silu",
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 64, "vocab_size": VOCAB, "bias": True,
}  # fmt: skip


def published_tensors(num_layers: int = 1, fc_bias: bool = True, qkv_bias: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator) * 0.3

    tensors = {"embed_tokens.weight": random(VOCAB, HIDDEN), "fc.weight": random(HIDDEN, 2 * HIDDEN)}
    if fc_bias:
        tensors["fc.bias"] = random(HIDDEN)
    for layer in (f"layers.{index}." for index in range(num_layers)):
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            tensors[f"{layer}self_attn.{name}_proj.weight"] = random(heads * HEAD_DIM, HIDDEN)
            if qkv_bias:
                tensors[f"{layer}self_attn.{name}_proj.bias"] = random(heads * HEAD_DIM)
        tensors[f"{layer}self_attn.o_proj.weight"] = random(HIDDEN, HEADS * HEAD_DIM)
        for name in ("gate", "up"):
            tensors[f"{layer}mlp.{name}_proj.weight"] = random(INNER, HIDDEN)
        tensors[f"{layer}mlp.down_proj.weight"] = random(HIDDEN, INNER)
        tensors[f"{layer}post_attention_layernorm.weight"] = random(HIDDEN)
        if layer != "layers.0.":
            tensors[f"{layer}input_layernorm.weight"] = random(HIDDEN)
    return tensors


def write_draft(directory: Path, tensors: dict[str, Tensor], file: str = "pytorch_model.bin", **config: Any) -> Path:
    directory.mkdir(exist_ok=True)
    if file.endswith(".bin"):
        torch.save(tensors, directory / file)
    else:
        save_file(tensors, directory / file)
    (directory / "config.json").write_text(json.dumps({**CONFIG, **config}), encoding="utf-8")
    return directory


def states_of(drafter: EagleDrafter) -> Tensor:
    """States after a fixed sequence and after one tree level behind it."""
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(1, 5, HIDDEN, generator=generator).to(drafter.dtype)
    drafter.reset(16)
    state = drafter.extend(torch.tensor([[3, 1, 4, 36, 0]]), features)
    level = drafter.advance(torch.tensor([[9, 2]]), state.expand(1, 2, -1), 1, torch.eye(2, dtype=torch.bool)[None])
    return torch.cat((state, level), 1)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("prefix", ["", "model.", "module.", "module.model."])
def test_files_and_prefixes_as_published_are_read(tmp_path: Path, target: Target, file: str, prefix: str) -> None:
    tensors = published_tensors()
    drafter = load_eagle_drafter(write_draft(tmp_path, {prefix + k: v for k, v in tensors.items()}, file), target)
    state, layer = drafter.state_dict(), "layers.0."
    qkv = torch.cat([tensors[f"{layer}self_attn.{name}_proj.weight"] for name in "qkv"])
    gate_up = torch.cat([tensors[f"{layer}mlp.{name}_proj.weight"] for name in ("gate", "up")])
    expected = {
        "fc.weight": tensors["fc.weight"],
        "fc.bias": tensors["fc.bias"],
        f"{layer}qkv_proj.weight": qkv,
        f"{layer}o_proj.weight": tensors[f"{layer}self_attn.o_proj.weight"],
        f"{layer}gate_up_proj.weight": gate_up,
        f"{layer}down_proj.weight": tensors[f"{layer}mlp.down_proj.weight"],
        f"{layer}post_attention_layernorm": tensors[f"{layer}post_attention_layernorm.weight"],
    }
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert drafter.shape.rms_norm_eps == CONFIG["rms_norm_eps"]
    assert not any(parameter.requires_grad for parameter in drafter.parameters())


def test_half_precision_files_take_the_targets_dtype(tmp_path: Path, target: Target) -> None:
    tensors = {name: tensor.half() for name, tensor in published_tensors().items()}
    drafter = load_eagle_drafter(write_draft(tmp_path, tensors), target)
    assert drafter.dtype == torch.float32
    assert torch.equal(drafter.fc.weight, tensors["fc.weight"].float())


@pytest.mark.parametrize("stored", ["other values", "absent"])
def test_stored_embeddings_are_ignored(tmp_path: Path, target: Target, stored: str) -> None:
    tensors = published_tensors()
    expected = states_of(load_eagle_drafter(write_draft(tmp_path / "a", tensors), target))
    tensors["embed_tokens.weight"] = torch.ones(VOCAB, HIDDEN)
    if stored == "absent":
        del tensors["embed_tokens.weight"]
    assert torch.equal(states_of(load_eagle_drafter(write_draft(tmp_path / "b", tensors), target)), expected)


@pytest.mark.parametrize("config_says", [True, False])
@pytest.mark.parametrize("fc_bias", [True, False])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_tensors_decide_on_biases_whatever_the_config_says(
    tmp_path: Path, target: Target, config_says: bool, fc_bias: bool, qkv_bias: bool
) -> None:
    tensors = published_tensors(fc_bias=fc_bias, qkv_bias=qkv_bias)
    drafter = load_eagle_drafter(write_draft(tmp_path, tensors, bias=config_says), target)
    state = drafter.state_dict()
    assert ("fc.bias" in state) == fc_bias
    assert ("layers.0.qkv_proj.bias" in state) == qkv_bias
    if qkv_bias:
        parts = [tensors[f"layers.0.self_attn.{name}_proj.bias"] for name in "qkv"]
        assert torch.equal(state["layers.0.qkv_proj.bias"], torch.cat(parts))


def test_rotary_settings_are_the_drafts_own(tmp_path: Path, target: Target) -> None:
    tensors = published_tensors()
    states = {}
    for theta in (10000.0, 500000.0):
        drafter = load_eagle_drafter(write_draft(tmp_path, tensors, rope_theta=theta), target)
        assert drafter.rotation(2)[0][1, 1].item() == pytest.approx(math.cos(theta**-0.5))  # head_dim 4
        states[theta] = states_of(drafter)
    assert not torch.equal(*states.values())
    default = load_eagle_drafter(write_draft(tmp_path, tensors, rope_theta=None), target)
    assert torch.equal(states_of(default), states[10000.0])


SPECULATORS_NAMES = {"fc.": "fusion_fc.", "layers.0.": "transformer."}
HASS_NORMS = ("embed_layernorm", "hidden_layernorm", "lm_head_layernorm")
SPECULATORS_NORMS = ("embedding_layernorm", "transformer.input_layernorm", "pre_lm_head_layernorm")


def speculators_config() -> dict[str, Any]:
    layer = {key: CONFIG[key] for key in CONFIG if key not in ("architectures", "bias")}
    return {
        "architectures": ["EagleSpeculator"], "speculators_model_type": "eagle", "speculators_version": "0.1.0",
        "fusion_bias": True, "layernorms": False, "transformer_layer_architecture": "LlamaDecoderLayer",
        "transformer_layer_config": layer,
    }  # fmt: skip


def test_the_names_of_early_speculators_are_read(tmp_path: Path, target: Target) -> None:
    tensors = published_tensors()
    expected = states_of(load_eagle_drafter(write_draft(tmp_path / "a", tensors), target))
    del tensors["embed_tokens.weight"]
    for ours, theirs in SPECULATORS_NAMES.items():
        tensors = {name.replace(ours, theirs): tensor for name, tensor in tensors.items()}
    directory = write_draft(tmp_path / "b", tensors)
    (directory / "config.json").write_text(json.dumps(speculators_config()), encoding="utf-8")
    assert torch.equal(states_of(load_eagle_drafter(directory, target)), expected)


@pytest.mark.parametrize("names", [HASS_NORMS, SPECULATORS_NORMS])
def test_the_norms_of_a_variant_are_read_under_both_sets_of_names(
    tmp_path: Path, target: Target, names: tuple[str, ...]
) -> None:
    tensors = published_tensors()
    norms = [torch.full((HIDDEN,), 1.0 + index) for index in range(3)]
    tensors.update({f"{name}.weight": norm for name, norm in zip(names, norms, strict=True)})
    drafter = load_eagle_drafter(write_draft(tmp_path, tensors), target)
    ours = (drafter.embed_layernorm, drafter.layers[0].input_layernorm, drafter.lm_head_layernorm)
    assert all(torch.equal(loaded, norm) for loaded, norm in zip(ours, norms, strict=True))


@pytest.mark.parametrize(("num_layers", "fc_bias", "qkv_bias"), [(1, False, False), (2, True, True)])
def test_saving_and_loading_is_the_identity(
    tmp_path: Path, target: Target, num_layers: int, fc_bias: bool, qkv_bias: bool
) -> None:
    tensors = published_tensors(num_layers, fc_bias, qkv_bias)
    drafter = load_eagle_drafter(write_draft(tmp_path / "a", tensors), target)
    save_eagle_drafter(drafter, tmp_path / "new" / "b", CONFIG)
    again = load_eagle_drafter(tmp_path / "new" / "b", target)
    state = again.state_dict()
    assert state.keys() == drafter.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in drafter.state_dict().items())
    assert torch.equal(states_of(again), states_of(drafter))
    assert again.shape == drafter.shape


def test_saved_names_are_the_published_ones(tmp_path: Path, target: Target) -> None:
    tensors = published_tensors(2, qkv_bias=True)
    drafter = load_eagle_drafter(write_draft(tmp_path / "a", tensors), target)
    save_eagle_drafter(drafter, tmp_path / "b", CONFIG)
    saved = load_file(tmp_path / "b" / "model.safetensors")
    del tensors["embed_tokens.weight"]
    assert saved.keys() == tensors.keys()
    assert all(torch.equal(saved[name], value) for name, value in tensors.items())
