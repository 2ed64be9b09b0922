"""Checkpoints made to harm: files elsewhere, names and sizes that are only claimed, code. Each is refused by name."""

from __future__ import annotations

import json
import lzma
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from nanospec.checkpoints import describe_checkpoint, load_drafter
from nanospec.checkpoints.files import read_tensors, resolve_checkpoint
from nanospec.checkpoints.target import load_target, load_target_skeleton, load_tokenizer
from nanospec.checkpoints.tokenizer import read_tokenizer
from nanospec.target import Target
from nanospec.untrusted_files import MAX_EXPANSION
from tests.checkpoints.eagle3_files import official, write_draft
from tests.checkpoints.test_files import INDEX, SHARDS, write_shards
from tests.checkpoints.test_medusa import heads, published, write

HUGE = 10**9


@pytest.fixture
def model_directory(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=37, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def write_code(directory: Path) -> Path:
    """A module, and the file that it would write; transformers runs a copy of it."""
    (directory / "code.py").write_text(f"from pathlib import Path\nPath({str(directory / 'ran')!r}).touch()\n")
    return directory / "ran"


def change_config(directory: Path, **settings: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def tensors_of_shards() -> dict[str, Tensor]:
    return {"a": torch.arange(3.0), "b": torch.ones(2), "c": torch.arange(4)}


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_link_out_of_the_directory_is_refused(tmp_path: Path, target: Target, name: str) -> None:
    directory = write_draft(tmp_path / "draft", official())
    (tmp_path / "elsewhere").write_text("{}")
    (directory / name).unlink(missing_ok=True)
    (directory / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"must hold its files itself, got a link '{name}' to another place"):
        load_drafter(directory, target)


def test_links_within_and_of_the_hub_cache_are_followed(tmp_path: Path, target: Target) -> None:
    blobs = write_draft(tmp_path / "blobs", official())
    snapshot = tmp_path / "snapshots" / "1a2b"
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs", path.name))
    (tmp_path / "link").symlink_to(snapshot)
    assert load_drafter(tmp_path / "link", target).name == "eagle3"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "additional_chat_templates/a.jinja"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match="checkpoint must hold regular files, got"):
        resolve_checkpoint(tmp_path, "draft")


@pytest.mark.parametrize(
    "shard", ["..", ".", "/etc/x.bin", "..\\x.bin", "a\0.bin", "C:x.bin", "a" * 300 + ".bin", "", INDEX]
)
def test_a_shard_is_a_file_of_the_directory(tmp_path: Path, shard: str) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ValueError, match="must list shards by file name, got"):
        read_tensors(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    tensors = tensors_of_shards()
    save_file({"c": tensors["c"], "a": torch.zeros(3)}, write_shards(tmp_path, tensors) / SHARDS[1])
    with pytest.raises(ValueError, match=f"shards that hold 'a' once, got it in {SHARDS[0]} and {SHARDS[1]}"):
        read_tensors(tmp_path)


def test_a_tensor_in_another_shard_than_listed_is_refused(tmp_path: Path) -> None:
    index = write_shards(tmp_path, tensors_of_shards()) / INDEX
    content = json.loads(index.read_text())
    content["weight_map"]["a"] = SHARDS[1]
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"must list the shard of 'a': {SHARDS[0]}"):
        read_tensors(tmp_path)


def test_the_shards_of_a_target_are_checked_too(model_directory: Path) -> None:
    (model_directory / "model.safetensors").rename(model_directory.parent / "outside.safetensors")
    (model_directory / INDEX).write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    with pytest.raises(ValueError, match="must list shards by file name, got '../outside.safetensors'"):
        load_target(model_directory, device="cpu")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("shard-00001-model-00001-of-00001.safetensors", "", "weights in one file or with an index"),
        ("generation_config.json", "[1]", "must hold a JSON object, got list"),
        ("tokenizer_config.json", '{"fast_tokenizer_files": ["../tokenizer.5.json"]}', "must be file names"),
        ("special_tokens_map.json", '{"a": 1, "a": 2}', "keys are distinct"),
    ],
)
def test_files_that_transformers_would_find_are_checked(
    model_directory: Path, name: str, content: str, message: str
) -> None:
    (model_directory / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_target(model_directory, device="cpu")


def test_an_adapter_is_refused(model_directory: Path) -> None:
    (model_directory / "adapter_config.json").write_text('{"base_model_name_or_path": "other/model"}')
    with pytest.raises(NotImplementedError, match="target must be a whole model, got an adapter beside it"):
        load_target(model_directory, device="cpu")


def test_the_index_of_a_layer_makes_no_layers(tmp_path: Path, target: Target) -> None:
    name = f"layers.{HUGE}.mlp.up_proj.weight"
    directory = write_draft(tmp_path, {**official(), name: torch.zeros(2, 2)})
    with pytest.raises(ValueError, match=rf"missing tensors \['layers.1.*unused tensors \['{name}'\]"):
        load_drafter(directory, target)
    assert describe_checkpoint(directory).num_layers == 2


def test_more_layers_than_any_draft_has_are_refused(tmp_path: Path, target: Target) -> None:
    empty = {f"layers.{number}.mlp.up_proj.weight": torch.zeros(0, 1) for number in range(1, 1100)}
    with pytest.raises(ValueError, match="draft must have at most 1024 layers, got 1100"):
        load_drafter(write_draft(tmp_path, {**official(), **empty}), target)


def test_heads_and_layers_of_medusa_are_not_multiplied(tmp_path: Path, target: Target) -> None:
    many = {f"{number}.0.linear.weight": torch.zeros(0, 1) for number in range(1000)}
    many |= {f"0.{number}.linear.weight": torch.zeros(0, 1) for number in range(1, 1000)}
    with pytest.raises(ValueError, match="a block per head and layer, got 1999 tensors of 1000 heads and 1000 layers"):
        load_drafter(write(tmp_path, many), target)


def test_a_list_of_names_in_an_error_is_short(tmp_path: Path, target: Target) -> None:
    tensors = {**published(heads()), **{f"extra.{number}": torch.zeros(1) for number in range(1000)}}
    with pytest.raises(ValueError, match=r"unused tensors \['extra.0'") as raised:
        load_drafter(write(tmp_path, tensors), target)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_dim": 2**20}, "head_dim must be at most 16384 and all heads 16777216 wide, got 4 heads of 1048576"),
        ({"num_attention_heads": 2**24, "head_dim": 2**10}, "all heads 16777216 wide, got 16777216 heads of 1024"),
    ],
)
def test_the_heads_of_a_draft_are_bounded(
    tmp_path: Path, target: Target, settings: dict[str, int], message: str
) -> None:
    directory = write_draft(tmp_path, official())
    change_config(directory, **settings)
    with pytest.raises(ValueError, match=message):
        load_drafter(directory, target)


@pytest.mark.parametrize("load", [lambda path: load_target(path, device="cpu"), load_target_skeleton])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_hidden_layers": HUGE}, f"target config num_hidden_layers must be at most 1024, got {HUGE}"),
        ({"num_hidden_layers": 1000}, "target config num_hidden_layers must be 2 as in its files, got 1000"),
        ({"num_hidden_layers": 1}, "target config num_hidden_layers must be 2 as in its files, got 1"),
        ({"num_labels": HUGE}, f"target config num_labels must be at most 65536, got {HUGE}"),
        ({"text_config": {"num_experts": HUGE}}, "target config num_experts must be at most 65536"),
        ({"hidden_size": 10**8}, "target config must describe the model in its files, got sizes of"),
        ({"hidden_size": 10**18}, "target must be a causal language model of transformers, got"),
        ({"head_dim": 10**10}, "target config must describe the model in its files, got sizes of"),
        ({"vocab_size": 10**9}, "target config must describe the model in its files, got sizes of"),
        ({"transformers_weights": "other.safetensors"}, "must not name its weight files, got transformers_weights"),
        (
            {"attn_implementation": "owner/kernel"},
            "attn_implementation must be part of transformers, got",
        ),
        ({"rope_theta": float("nan")}, "must be JSON, which has no NaN"),
        ({"pad_token_id": 10**6}, "target must be a causal language model of transformers, got"),
        ({"dtype": "load"}, "target must be a causal language model of transformers, got"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_a_config_that_the_files_cannot_fill_is_refused(
    model_directory: Path, load: Any, settings: dict[str, Any], message: str
) -> None:
    change_config(model_directory, **settings)
    with pytest.raises(ValueError, match=message):
        load(model_directory)


def test_weights_that_are_whole_numbers_are_not_cast(model_directory: Path) -> None:
    tensors = load_file(model_directory / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].view(torch.int32)
    save_file(tensors, model_directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"weights must be floating-point numbers, got torch.int32 in '{name}'"):
        load_target(model_directory, device="cpu")


def test_weights_that_would_be_left_out_are_named(model_directory: Path) -> None:
    tensors = load_file(model_directory / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(16)
    save_file(tensors, model_directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"alone, got others too: \['model.layers.0.self_attn.q_proj.bias'\]"):
        load_target(model_directory, device="cpu")


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_a_dtype_that_nothing_computes_in_is_refused(model_directory: Path, dtype: str) -> None:
    change_config(model_directory, dtype=dtype)
    with pytest.raises(ValueError, match=r"target (config dtype must be one of|must be a causal language model)"):
        load_target(model_directory, device="cpu")


def test_code_beside_a_target_is_not_run(model_directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    ran = write_code(model_directory)
    change_config(
        model_directory,
        auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    )
    load_target(model_directory, device="cpu")
    assert "code of its own (auto_map) is not run" in caplog.text
    assert not ran.exists()


@pytest.mark.parametrize("code", [["code.Tokenizer", None], {"AutoTokenizer": ["code.Tokenizer", None]}, "code.T", 3])
def test_code_of_a_tokenizer_is_not_run(model_directory: Path, code: object) -> None:
    ran = write_code(model_directory)
    (model_directory / "vocab.json").write_text("{}")
    (model_directory / "tokenizer_config.json").write_text(json.dumps({"auto_map": code, "tokenizer_class": "Own"}))
    with pytest.raises(ValueError, match="tokenizer must be one of transformers, got"):
        load_tokenizer(model_directory)
    assert not ran.exists()


def test_a_tokenizer_that_expands_without_end_is_refused(tmp_path: Path) -> None:
    content = lzma.compress(bytes(10**7))
    (tmp_path / "tokenizer.json.xz").write_bytes(content)
    with pytest.raises(ValueError, match=f"xz stream that expands to at most {MAX_EXPANSION * len(content)} bytes"):
        read_tokenizer(tmp_path / "tokenizer.json.xz")


def test_an_xz_stream_that_wants_too_much_memory_is_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2**29}]
    (tmp_path / "tokenizer.json.xz").write_bytes(lzma.compress(b"{}", filters=filters))
    with pytest.raises(ValueError, match="[Mm]emory usage limit"):
        read_tokenizer(tmp_path / "tokenizer.json.xz")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.json.xz"])
def test_a_panic_of_tokenizers_is_a_value_error(tmp_path: Path, name: str) -> None:
    content = {
        "version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []},
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    }  # fmt: skip
    text = json.dumps(content).encode()
    (tmp_path / name).write_bytes(lzma.compress(text) if name.endswith(".xz") else text)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ValueError, match="tokenizer must be .*recompiled"):
        load_tokenizer(tmp_path)


def test_a_setting_of_a_tokenizer_that_is_none_is_refused(tmp_path: Path) -> None:
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    content = {"version": "1.0", "added_tokens": [], "model": model}
    (tmp_path / "tokenizer.json.xz").write_bytes(lzma.compress(json.dumps(content).encode()))
    (tmp_path / "tokenizer_config.json").write_text('{"added_tokens_decoder": 3}')
    with pytest.raises(ValueError, match="tokenizer_config.json must hold settings of transformers, got"):
        load_tokenizer(tmp_path)
