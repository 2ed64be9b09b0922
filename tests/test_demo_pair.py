"""The embedded pair: any transformers can load it, and every vocabulary decodes it exactly."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from nanospec import SpeculativeDecoder, TreeShape
from nanospec.demo import DEMO_DIRECTORY, DRAFT_DIRECTORIES, DRAFT_DIRECTORY, TARGET_DIRECTORY, VOCAB_SIZE

MAX_BYTES = 60_000_000
PROMPTS = ("How does a rainbow form?", "Write a Python function that adds two numbers.")


@pytest.fixture(scope="module")
def decoder() -> SpeculativeDecoder:
    return SpeculativeDecoder.from_demo(dtype="float32", tree=TreeShape(4, 6, 16))


def test_the_pair_fits_its_size_budget():
    files = [path for path in DEMO_DIRECTORY.rglob("*") if path.suffix in {".safetensors", ".xz", ".json"}]
    assert 0 < sum(path.stat().st_size for path in files) <= MAX_BYTES


def test_plain_transformers_loads_the_target_to_the_same_logits(decoder):
    model = AutoModelForCausalLM.from_pretrained(TARGET_DIRECTORY, dtype=torch.float32)
    assert isinstance(model, LlamaForCausalLM)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    ids = decoder.encode(PROMPTS[0])
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, decoder.target.model(ids).logits)


def test_the_draft_is_in_the_published_layout():
    config = json.loads((DRAFT_DIRECTORY / "config.json").read_text())
    assert config["vocab_size"] == 131072
    assert {path.name for path in DRAFT_DIRECTORY.iterdir()} == {
        "config.json",
        "model.safetensors",
        "frequent_ids.safetensors",
    }


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "top_p": 0.95, "seed": 5}])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_every_vocabulary_decodes_exactly(decoder, prompt, sampling):
    ids = decoder.encode(prompt)
    plain = decoder.generate_autoregressive(ids, max_new_tokens=32, **sampling)
    for vocab in ("full", "static:4096", "in-context"):
        result = decoder.with_vocab(vocab).generate(ids, max_new_tokens=32, **sampling)
        assert result.token_ids == plain.token_ids
        assert result.text == plain.text


def test_the_in_context_vocabulary_is_small_and_good(decoder):
    ids = decoder.encode(PROMPTS[1])
    small = decoder.with_vocab("in-context").generate(ids, max_new_tokens=64).stats
    full = decoder.with_vocab("full").generate(ids, max_new_tokens=64).stats
    assert small.mean_active_vocab < 1000 < full.mean_active_vocab == 131072
    assert small.mean_accept_length > 0.8 * full.mean_accept_length > 0.8 * 1.5


@pytest.mark.parametrize("draft", sorted(set(DRAFT_DIRECTORIES) - {"eagle"}))
def test_every_embedded_drafter_decodes_exactly_and_helps(decoder, draft):
    """With lists of frequent ids, of which there is one for all drafters."""
    other = SpeculativeDecoder.from_demo(draft, dtype="float32", tree=TreeShape(4, 6, 16), vocab="hybrid:1024+prior")
    assert (other.drafter.name, other.target.vocab_size) == (draft, VOCAB_SIZE)
    for sampling in ({}, {"temperature": 0.8, "seed": 5}):
        ids = decoder.encode(PROMPTS[1])
        plain = decoder.generate_autoregressive(ids, max_new_tokens=48, **sampling)
        result = other.generate(ids, max_new_tokens=48, **sampling)
        assert result.token_ids == plain.token_ids
        assert result.stats.mean_accept_length > 1.3


def test_a_drafter_that_is_not_embedded_is_refused():
    with pytest.raises(ValueError, match="must be one of eagle, eagle3, medusa, prompt-lookup, got 'hydra'"):
        SpeculativeDecoder.from_demo("hydra")
