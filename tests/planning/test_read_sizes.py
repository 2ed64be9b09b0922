"""Sizes from configs, against the models and drafters that such configs make."""

from __future__ import annotations

import json
import re

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nanospec.costs import params_per_pass
from nanospec.demo import DRAFT_DIRECTORY, TARGET_DIRECTORY
from nanospec.drafters.eagle import EagleDrafter
from nanospec.planning.model_sizes import Product
from nanospec.planning.read_sizes import model_sizes, read_draft, read_target
from tests.tiny_pair import tiny_drafter, tiny_target

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 500, "hidden_act": "silu",
}  # fmt: skip
EXPERTS = {**LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}


def write(directory, name="config.json", **changes):
    path = directory / name
    path.write_text(json.dumps({**LLAMA, **changes}))
    return path


def matrices(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.dim() > 1)


@pytest.mark.parametrize("tied", [True, False])
def test_a_target_reads_all_its_matrices_but_an_embedding(tmp_path, tied):
    sizes = read_target(write(tmp_path, tie_word_embeddings=tied))
    model = LlamaForCausalLM(LlamaConfig(**{**LLAMA, "tie_word_embeddings": tied}))
    vectors = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 1)
    assert sizes.num_weights(1) + 64 * sizes.num_ids == params_per_pass(model) - vectors
    assert (sizes.num_layers, sizes.attention_width, sizes.cache_width, sizes.num_ids) == (3, 64, 64, 500)
    assert sizes == model_sizes(model)


def test_a_file_and_its_directory_say_the_same(tmp_path):
    path = write(tmp_path)
    assert read_target(path) == read_target(tmp_path)


def test_experts_are_told_from_matrices(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(EXPERTS))
    products = [product for product in read_target(path).products if product.num_experts > 1]
    assert products
    assert all((p.num_experts, p.experts_per_token, p.times) == (4, 2, 3) for p in products)


def test_an_eagle_draft_reads_what_its_module_holds():
    target = tiny_target(0)
    drafter: EagleDrafter = tiny_drafter(target, 1)
    sizes = model_sizes(target.model)
    from nanospec.checkpoints.detect import Family
    from nanospec.planning.read_sizes import eagle_sizes

    drafted = eagle_sizes(Family.EAGLE, drafter.shape, sizes, sizes.num_ids)
    assert drafted.body.num_weights(1) == matrices(drafter)


def test_the_embedded_pair_is_read_from_its_directories():
    target = read_target(TARGET_DIRECTORY)
    draft = read_draft(DRAFT_DIRECTORY, target)
    assert (draft.family, draft.body.num_ids, draft.is_parallel) == ("EAGLE-1/2", 131_072, False)
    fused, heads, inner = Product(256, 512), Product(512, 256), Product(2048, 256)
    assert {fused, heads, inner, Product(256, 1024), Product(256, 256)} == set(draft.body.products)


@pytest.mark.parametrize(
    ("config", "family", "num_ids"),
    [
        ({"num_hidden_layers": 1}, "EAGLE-1/2", 500),
        ({"num_hidden_layers": 1, "draft_vocab_size": 100}, "EAGLE-3", 100),
        ({"architectures": ["LlamaForCausalLMEagle3"], "num_hidden_layers": 1}, "EAGLE-3", 500),
        ({"speculators_model_type": "eagle3", "draft_vocab_size": 50}, "EAGLE-3", 50),
        ({"num_hidden_layers": 2}, "causal language model", 500),
        ({"num_hidden_layers": 2, "vocab_size": 700}, "causal language model", 500),
        ({"medusa_num_heads": 4}, "Medusa", 500),
    ],
)
def test_a_draft_config_says_its_family(tmp_path, config, family, num_ids):
    target = read_target(write(tmp_path))
    draft = read_draft(write(tmp_path, "draft.json", **config), target)
    assert (draft.family, draft.body.num_ids) == (family, num_ids)


@pytest.mark.parametrize("name", ["eagle", "eagle3"])
def test_a_named_draft_has_a_layer_as_the_targets(tmp_path, name):
    target = read_target(write(tmp_path, num_hidden_layers=1))
    draft = read_draft(name, target)
    joined = 64 * 128 if name == "eagle" else 128 * 64  # fc, or the second input of the first attention
    assert draft.body.num_weights(1) == target.num_weights(1) + joined
    assert bool(draft.taking_in) == (name == "eagle3")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_type": "mamba"}, NotImplementedError, "target model_type must be one of"),
        ({"hidden_size": "wide"}, ValueError, "target must be the config of a causal language model"),
        ({"num_hidden_layers": 10**9}, ValueError, "num_hidden_layers must be at most"),
    ],
)
def test_a_target_config_that_is_none_is_refused(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        read_target(write(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "resnet"}, "draft must be the config of an EAGLE, EAGLE-3, Medusa or language-model draft"),
        ({"num_hidden_layers": 1, "hidden_size": 32}, "draft hidden_size must be 64 as the target's, got 32"),
        ({"medusa_num_heads": 0}, "medusa_num_heads must be a positive whole number"),
    ],
)
def test_a_draft_config_that_does_not_fit_is_refused(tmp_path, changes, message):
    target = read_target(write(tmp_path))
    with pytest.raises(ValueError, match=re.escape(message)):
        read_draft(write(tmp_path, "draft.json", **changes), target)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="target must hold a config.json"):
        read_target(tmp_path)
    with pytest.raises(FileNotFoundError, match="target must be a checkpoint directory"):
        read_target(tmp_path / "missing")
