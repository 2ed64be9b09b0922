"""What is said of a checkpoint of each family, and of one that does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from nanospec.checkpoints.describe import describe_checkpoint
from nanospec.target_families import FAMILIES as ARCHITECTURES
from tests.checkpoints import eagle3_files
from tests.checkpoints.eagle3_files import CONFIG, HIDDEN, VOCAB, official, speculators, speculators_config
from tests.checkpoints.test_causal_lm import WORDS, saved
from tests.checkpoints.test_eagle import published_tensors, write_draft
from tests.tiny_families import FAMILIES, family_model
from tests.tiny_language_models import tiny_language_model


@pytest.fixture(scope="module")
def target_directory(tmp_path_factory) -> Path:
    """A config alone: weights are not read."""
    directory = tmp_path_factory.mktemp("target")
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=24, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    config.save_pretrained(directory)
    return directory


def test_an_eagle_1_draft(tmp_path: Path, target_directory: Path) -> None:
    directory = write_draft(tmp_path, published_tensors(2, fc_bias=True, qkv_bias=True))
    about = describe_checkpoint(directory, target_directory)
    assert (about.family, about.layout, about.num_layers, about.hidden_size) == ("EAGLE-1/2", "published", 2, 16)
    assert (about.num_heads, about.num_kv_heads, about.intermediate_size, about.vocab_size) == (4, 2, 24, 37)
    assert about.optional_parts == ["fc.bias", "embedding", "attention biases"]
    assert about.rope_theta == 500000.0
    assert about.dtypes == ["float32"]
    assert about.problems == []


def test_an_eagle_3_draft_with_and_without_its_target(tmp_path: Path, target_directory: Path) -> None:
    directory = eagle3_files.write_draft(tmp_path, official())
    about = describe_checkpoint(directory)
    assert (about.family, about.draft_vocab_size, about.vocab_size) == ("EAGLE-3", 9, VOCAB)
    assert about.feature_layers == "inputs of 2, L // 2, L - 3 (default)"
    assert about.optional_parts == ["head", "d2t", "t2d"]
    assert about.dtypes == ["bool", "float32", "int64"]
    assert about.rope_theta == 10000.0
    assert describe_checkpoint(directory, target_directory).feature_layers == [2, 4, 5]


def test_the_layers_are_told_with_what_they_count(tmp_path: Path) -> None:
    key = "eagle_aux_hidden_state_layer_ids"
    told = {
        "inputs of [1, 3, 6]": {**CONFIG, key: [1, 3, 6]},
        "outputs of [1, 3, 6]": {**CONFIG, "eagle_config": {key: [1, 3, 6]}},
    }
    for expected, config in told.items():
        assert describe_checkpoint(eagle3_files.write_draft(tmp_path, official(), config)).feature_layers == expected


def test_a_draft_of_speculators(tmp_path: Path, target_directory: Path) -> None:
    config = speculators_config(norm_before_residual=True, norm_output=True)
    about = describe_checkpoint(eagle3_files.write_draft(tmp_path, speculators(2, True), config), target_directory)
    assert (about.family, about.layout, about.num_layers) == ("EAGLE-3", "speculators 0.9.0", 2)
    assert about.optional_parts == [
        "head", "d2t", "t2d", "norms of queries and keys", "norm_before_residual", "norm_output",
    ]  # fmt: skip
    assert about.problems == []


def test_medusa_heads_are_counted_whatever_the_config_says(tmp_path: Path) -> None:
    tensors = {}
    for head in range(5):
        tensors |= {f"{head}.0.linear.weight": torch.zeros(8, 8), f"{head}.0.linear.bias": torch.zeros(8)}
        tensors[f"{head}.1.weight"] = torch.zeros(20, 8)
    torch.save(tensors, tmp_path / "medusa_lm_head.pt")
    (tmp_path / "config.json").write_text('{"medusa_num_heads": 2, "medusa_num_layers": 1}')
    about = describe_checkpoint(tmp_path)
    assert (about.family, about.num_medusa_heads, about.hidden_size) == ("Medusa", 5, 8)


def test_a_language_model(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path)
    about = describe_checkpoint(tmp_path)
    assert (about.family, about.num_layers, about.vocab_size) == ("causal language model", 2, 30)
    assert about.problems == []


def test_a_language_model_as_draft_is_checked_without_its_weights(tmp_path: Path) -> None:
    directory = saved(tmp_path / "target", tiny_language_model("llama", seed=3))
    assert describe_checkpoint(directory, directory).problems == []
    other = saved(tmp_path / "other", tiny_language_model("qwen3", seed=5), [*WORDS[:7], "other", *WORDS[7:-1]])
    assert describe_checkpoint(other, directory).problems == [
        f"draft must have the target's tokenizer: id 7 is 'w7' in the target and 'other' in {other}"
    ]
    larger = saved(tmp_path / "larger", tiny_language_model("llama", 1, 2000), None)
    (problem,) = describe_checkpoint(larger, directory).problems
    assert problem.startswith("draft must have the target's tokenizer: its head scores 2000 ids, the target's 61")
    config = other / "config.json"
    config.write_text(config.read_text().replace('"qwen3"', '"gpt_neox"'))
    (problem,) = describe_checkpoint(other, directory).problems
    assert problem.startswith("draft model_type must be one of ")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_architecture_of_targets_is_a_language_model(tmp_path: Path, name: str) -> None:
    model = family_model(name).float()
    assert model.config.model_type in ARCHITECTURES
    model.save_pretrained(tmp_path)
    about = describe_checkpoint(tmp_path, tmp_path)
    assert (about.family, about.num_layers, about.vocab_size) == ("causal language model", 3, 50)
    assert about.problems == []


def test_settings_of_a_nested_config_are_told(tmp_path: Path) -> None:
    nested = {**CONFIG, "norm_output": True, "eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 3, 5]}}
    about = describe_checkpoint(
        eagle3_files.write_draft(tmp_path, official(), {"model_type": "eagle", "model": nested})
    )
    assert about.feature_layers == "outputs of [0, 3, 5]"
    assert "norm_output" in about.optional_parts


def test_a_draft_of_another_target_is_told_why(tmp_path: Path, target_directory: Path) -> None:
    directory = eagle3_files.write_draft(tmp_path, {**official(), "t2d": torch.ones(38, dtype=torch.bool)})
    assert describe_checkpoint(directory).problems == []
    (problem,) = describe_checkpoint(directory, target_directory).problems
    assert problem == "draft t2d must have shape (37,), one per id of the target, got (38,)"


def test_something_else_and_a_missing_config_are_problems(tmp_path: Path, target_directory: Path) -> None:
    save_file({"conv.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    about = describe_checkpoint(tmp_path, target_directory)
    assert about.family == "unknown"
    assert about.problems[0].startswith("checkpoint must hold a config.json, got none in")
    assert about.problems[1] == "its tensors are of no known family: ['conv.weight']"


def test_a_target_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    directory = eagle3_files.write_draft(tmp_path / "draft", official())
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(NotImplementedError, match="target model_type must be one of .*llama, .*, got 'mamba'"):
        describe_checkpoint(directory, tmp_path)
