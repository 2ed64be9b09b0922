"""Targets saved by transformers, and the ones that are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from nanospec.checkpoints.target import load_target, parse_dtype
from nanospec.ops.weight_first import WeightFirstLinear
from tests.tiny_families import FAMILIES, family_model

# float32 logits of order 1 through two attention paths (masked and causal).
ATOL = 1e-5
FAMILY_ATOL = 1e-3  # logits of order 10, three layers


def tiny_model(model_type: str, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 37, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**sizes, **settings})).eval()


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("model_type", "settings"),
    [("llama", {}), ("qwen2", {"use_sliding_window": False}), ("qwen3", {}), ("mistral", {"sliding_window": None})],
)
def test_a_saved_model_gives_its_own_logits(
    tmp_path: Path, model_type: str, settings: dict[str, Any], is_tied: bool
) -> None:
    model = tiny_model(model_type, tie_word_embeddings=is_tied, **settings)
    model.save_pretrained(tmp_path)
    target, tokenizer = load_target(tmp_path, device="cpu")
    token_ids = torch.tensor([[5, 36, 0, 7]])
    with torch.inference_mode():
        target.reset(8)
        logits = target.prefill(token_ids).last_logits
        torch.testing.assert_close(logits, model(token_ids).logits[:, -1], rtol=0, atol=ATOL)
    assert tokenizer is None
    assert (target.vocab_size, target.dtype, target.device.type) == (37, torch.float32, "cpu")


def test_a_model_that_is_loaded_here_reads_its_weights_first(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    layers = [layer for layer in load_target(tmp_path, device="cpu")[0].model.modules() if isinstance(layer, nn.Linear)]
    assert layers
    assert all(isinstance(layer, WeightFirstLinear) for layer in layers)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float64])
def test_the_dtype_is_the_one_asked_for(tmp_path: Path, dtype: str | torch.dtype) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    target, _ = load_target(tmp_path, dtype=dtype, device="cpu")
    assert target.dtype == parse_dtype(dtype)


def test_without_a_dtype_the_checkpoints_is_kept(tmp_path: Path) -> None:
    tiny_model("llama").bfloat16().save_pretrained(tmp_path)
    assert load_target(tmp_path, device="cpu")[0].dtype == torch.bfloat16


def test_a_loaded_module_is_taken_as_it_is() -> None:
    model = tiny_model("llama")
    assert load_target(model)[0].model is model
    assert not any(isinstance(layer, WeightFirstLinear) for layer in model.modules())
    with pytest.raises(ValueError, match="dtype and device must be None for a loaded target, got 'float32' and None"):
        load_target(model, dtype="float32")


@pytest.mark.parametrize("model_type", ["gpt_neox", "nonsense"])
def test_another_architecture_is_refused_before_its_weights_are_read(tmp_path: Path, model_type: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(NotImplementedError, match=f"model_type must be one of .*, llama, .*, got '{model_type}'"):
        load_target(tmp_path, device="cpu")


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_architecture_is_loaded_with_a_kernel_that_is_right_with_trees(tmp_path: Path, name: str) -> None:
    model = family_model(name).float()
    model.save_pretrained(tmp_path)
    target, _ = load_target(tmp_path, device="cpu")
    assert target.config._attn_implementation == ("eager" if name == "gemma2" else "sdpa")
    token_ids = torch.arange(3, 14)[None]
    with torch.inference_mode():
        target.reset(12)
        logits = target.prefill(token_ids).last_logits
        torch.testing.assert_close(logits, model(token_ids).logits[:, -1], rtol=0, atol=FAMILY_ATOL)


def test_an_unknown_dtype_lists_the_choices(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype must be one of float64, float32, bfloat16, float16, got 'int4'"):
        load_target(tmp_path, dtype="int4")


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[2, 3] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"NaN or infinity in 'model.layers.1.mlp.up_proj.weight'"):
        load_target(tmp_path, device="cpu")


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    tiny_model("llama", tie_word_embeddings=False).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"must hold all its weights, missing \['model.layers.0.mlp.up_proj.weight'\]"):
        load_target(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncated", "model.safetensors must be a readable weight file"),
        ("wrong shape", "target must be a causal language model of transformers, got"),
        ("no weights", "checkpoint must hold one of model.safetensors"),
    ],
)
def test_an_unreadable_checkpoint_is_refused(tmp_path: Path, damage: str, message: str) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:200])
    elif damage == "no weights":
        weights.unlink()
    else:
        config.write_text(json.dumps({**json.loads(config.read_text()), "intermediate_size": 20}))
    with pytest.raises(FileNotFoundError if damage == "no weights" else ValueError, match=message):
        load_target(tmp_path, device="cpu")


def test_a_missing_path_or_config_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="target must be a checkpoint directory or a hub id, got"):
        load_target(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="checkpoint must hold a config.json"):
        load_target(tmp_path)


def test_something_that_is_no_source_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="target must be a path, a hub id or a PreTrainedModel, got int"):
        load_target(3)  # type: ignore[arg-type]
