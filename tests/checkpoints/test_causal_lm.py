"""A complete language model given as the draft: recognised, loaded, refused where its tokens mean something else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from nanospec import SpeculativeDecoder, TreeShape
from nanospec.checkpoints.causal_lm import MAX_PADDING, build_causal_lm_drafter, load_causal_lm_drafter
from nanospec.checkpoints.drafter import load_drafter
from nanospec.checkpoints.eagle import save_eagle_drafter
from nanospec.drafters import CausalLMDrafter, EagleDrafter
from nanospec.target import Target
from tests.tiny_language_models import noisy_copy, tiny_language_model
from tests.tiny_pair import VOCAB_SIZE, tiny_drafter

WORDS = [f"w{number}" for number in range(VOCAB_SIZE)]
EAGLE_CONFIG = {"hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 40}


def tokenizer_of(words: list[str]) -> PreTrainedTokenizerFast:
    vocab = {word: token_id for token_id, word in enumerate(words)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocab, unk_token=words[0])))


def saved(directory: Path, model: PreTrainedModel, words: list[str] | None = WORDS) -> Path:
    model.save_pretrained(directory)
    if words is not None:
        tokenizer_of(words).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_language_model("llama", seed=3)


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_directory_with_a_language_model_becomes_its_drafter(tmp_path, model, family, is_tied):
    own = tiny_language_model(family, seed=5)
    own.config.tie_word_embeddings = is_tied
    own.tie_weights()
    drafter = load_drafter(saved(tmp_path, own.float()), Target(model), tokenizer=tokenizer_of(WORDS))
    assert isinstance(drafter, CausalLMDrafter)
    assert drafter.dtype == torch.float64
    assert torch.equal(drafter.head.weight, own.get_output_embeddings().weight.double())


def test_an_eagle_draft_is_still_one(tmp_path, model):
    target = Target(model)
    save_eagle_drafter(tiny_drafter(target, 1), tmp_path, EAGLE_CONFIG)
    assert isinstance(load_drafter(tmp_path, target), EagleDrafter)


@pytest.mark.parametrize("rows", [VOCAB_SIZE, 50, 70])
def test_a_pair_of_directories_decodes_exactly(tmp_path, model, rows):
    target = saved(tmp_path / "target", model)
    draft = saved(tmp_path / "draft", noisy_copy(model, 0.2, rows), WORDS[:50])
    for vocab in ("full", "in-context"):
        decoder = SpeculativeDecoder.from_pretrained(target, draft, vocab=vocab, tree=TreeShape(3, 1, 4), device="cpu")
        assert decoder.drafter.num_rows == min(rows, VOCAB_SIZE)
        plain = decoder.generate_autoregressive([1, 2, 3], max_new_tokens=20)
        result = decoder.generate([1, 2, 3], max_new_tokens=20)
        assert result.token_ids == plain.token_ids
        assert result.stats.drafter == "causal-lm"


def test_a_model_in_memory_is_taken_too(model):
    decoder = SpeculativeDecoder.from_pretrained(model, noisy_copy(model, 0.2), vocab="full", tree=(2, 1, 3))
    assert isinstance(decoder.drafter, CausalLMDrafter)
    expected = decoder.generate_autoregressive([1], max_new_tokens=9).token_ids
    assert decoder.generate([1], max_new_tokens=9).token_ids == expected


def test_another_tokenizer_is_refused_with_the_first_token_that_differs(tmp_path, model):
    words = [*WORDS[:7], "other", *WORDS[7:-1]]
    draft = saved(tmp_path, model, words)
    with pytest.raises(ValueError, match="target's tokenizer: id 7 is 'w7' in the target and 'other' in "):
        load_drafter(draft, Target(model), tokenizer=tokenizer_of(WORDS))


def test_tokens_of_its_own_at_the_end_are_no_other_tokenizer(tmp_path, model):
    draft = saved(tmp_path, model, [*WORDS, "<extra>"])
    assert isinstance(load_drafter(draft, Target(model), tokenizer=tokenizer_of(WORDS)), CausalLMDrafter)


@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_without_two_tokenizers_sizes_must_agree_but_for_padding(tmp_path, model, has_tokenizer):
    size = VOCAB_SIZE + MAX_PADDING + 1
    draft = saved(tmp_path, tiny_language_model("llama", 1, size), WORDS if has_tokenizer else None)
    tokenizer = None if has_tokenizer else tokenizer_of(WORDS)
    with pytest.raises(ValueError, match=f"its head scores {size} ids, the target's 61, and padding accounts for 1024"):
        load_causal_lm_drafter(draft, Target(model), tokenizer)
    assert isinstance(
        build_causal_lm_drafter(tiny_language_model("llama", 1, size - 1), Target(model)), CausalLMDrafter
    )


def test_errors_of_loading_name_the_draft(tmp_path, model):
    target = Target(model)
    with pytest.raises(FileNotFoundError, match="draft must be a checkpoint directory or a hub id"):
        load_drafter(tmp_path / "nowhere", target)
    saved(tmp_path, model)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({key: value for key, value in tensors.items() if key != name}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"draft .* must hold all its weights, missing \['{name}'\]"):
        load_drafter(tmp_path, target)
    save_file({**tensors, name: tensors[name] * torch.nan}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"weights must be finite, got NaN or infinity in '{name}'"):
        load_drafter(tmp_path, target)


def test_an_architecture_that_could_not_be_a_target_is_refused(tmp_path, model):
    saved(tmp_path, model)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"gpt_neox"'))
    with pytest.raises(NotImplementedError, match="draft model_type must be one of .*, got 'gpt_neox'"):
        load_drafter(tmp_path, Target(model))
