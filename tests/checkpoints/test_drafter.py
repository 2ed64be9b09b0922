"""One loader for every draft: the tensors decide what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nanospec.checkpoints import load_drafter
from nanospec.drafters import CausalLMDrafter
from nanospec.target import Target
from tests.checkpoints import eagle3_files
from tests.checkpoints.test_bad_drafts import Intruder
from tests.checkpoints.test_eagle import CONFIG, published_tensors, write_draft
from tests.tiny_families import FAMILIES, family_model
from tests.tiny_language_models import tiny_language_model


def test_an_eagle_1_draft_is_one_whatever_its_config_claims(tmp_path: Path, target: Target) -> None:
    directory = write_draft(tmp_path, published_tensors(), architectures=["LlamaForCausalLMEagle3"])
    assert load_drafter(directory, target).name == "eagle"
    with pytest.raises(ValueError, match="feature_layers must be None for a draft that is not EAGLE-3"):
        load_drafter(directory, target, feature_layers=[1, 2, 3])


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        (
            {
                "model.embed_tokens.weight": torch.zeros(2, 2),
                "model.norm.weight": torch.zeros(2),
                "model.layers.0.self_attn.q_proj.weight": torch.zeros(2, 2),
            },
            ValueError,
            "draft must be a causal language model of transformers, got",
        ),
        (
            {"weight": torch.zeros(2)},
            ValueError,
            r"one of EAGLE-1/2, EAGLE-3, Medusa, native MTP, causal language model, got tensors \['weight'\] in",
        ),
    ],
)
def test_what_cannot_draft_is_refused_by_its_name(
    tmp_path: Path, target: Target, tensors: dict[str, Tensor], error: type[Exception], message: str
) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(error, match=message):
        load_drafter(tmp_path, target)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_architecture_of_targets_drafts_and_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model = family_model(name)
    model.save_pretrained(tmp_path)
    monkeypatch.setattr("nanospec.checkpoints.files.load_file", None)  # would read the weights beside transformers
    drafter = load_drafter(tmp_path, Target(tiny_language_model("llama", 1, 50).float()))
    assert isinstance(drafter, CausalLMDrafter)
    assert torch.equal(drafter.head.weight, model.get_output_embeddings().weight.float())


def test_a_sharded_draft_loads(tmp_path: Path, target: Target) -> None:
    tensors, names = published_tensors(), ("model-1.safetensors", "model-2.safetensors")
    places = {name: names[name.startswith("layers")] for name in tensors}
    for shard in names:
        save_file({name: tensors[name] for name in tensors if places[name] == shard}, tmp_path / shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert torch.equal(load_drafter(tmp_path, target).fc.weight, tensors["fc.weight"])
    (tmp_path / names[1]).unlink()
    with pytest.raises(FileNotFoundError, match=rf"all shards .*, missing \['{names[1]}'\]"):
        load_drafter(tmp_path, target)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_truncated_draft_is_refused(tmp_path: Path, target: Target, file: str) -> None:
    path = eagle3_files.write_draft(tmp_path, eagle3_files.official(), file=file) / file
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{file} must be a readable weight file"):
        load_drafter(tmp_path, target)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, target: Target) -> None:
    eagle3_files.write_draft(tmp_path, {}, file="pytorch_model.bin")
    torch.save({**eagle3_files.official(), "more": Intruder(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="must be a readable weight file"):
        load_drafter(tmp_path, target)
    assert not (tmp_path / "ran").exists()
