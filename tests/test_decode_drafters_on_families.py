"""Every kind of drafter on targets with windows, soft-caps and experts: the output is the target's own."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from nanospec import SpeculativeDecoder, TreeShape
from nanospec.drafters import CausalLMDrafter, Drafter, JoinedDrafter, PromptLookupDrafter
from nanospec.target import Target
from tests.tiny_families import MIXED, VOCAB_SIZE, family_drafter, family_model
from tests.tiny_medusa import tiny_medusa
from tests.tiny_pair import tiny_eagle3_drafter

FAMILIES = {"gemma2": {"num_hidden_layers": 9, "layer_types": MIXED * 3}, "qwen3_moe": {"num_hidden_layers": 9}}
DRAFTERS = ("eagle", "eagle3", "medusa", "causal-lm", "prompt-lookup", "joined")
ROPE = LlamaConfig(hidden_size=32, num_attention_heads=4, max_position_embeddings=128)


def build_drafter(kind: str, target: Target, family: str) -> Drafter:
    if kind == "eagle3":
        return tiny_eagle3_drafter(target, 2, num_rows=40, rope=ROPE)
    if kind == "medusa":
        return tiny_medusa(target, 2)
    if kind == "causal-lm":
        return CausalLMDrafter(family_model(family, seed=4, **FAMILIES[family]), VOCAB_SIZE)
    if kind == "prompt-lookup":
        return PromptLookupDrafter()
    eagle = family_drafter(target)
    return JoinedDrafter(eagle, PromptLookupDrafter()) if kind == "joined" else eagle


@cache
def decoder(family: str, kind: str, vocab: str) -> SpeculativeDecoder:
    target = Target(family_model(family, **FAMILIES[family]))
    return SpeculativeDecoder(target, build_drafter(kind, target, family), vocab, TreeShape(3, 3, 9), capacity=25)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 3}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=6)
@given(prompt=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=12), has_prior=st.booleans())
def test_output_is_autoregressive_output(family, kind, sampling, prompt, has_prior):
    pair = decoder(family, kind, "in-context+prior" if has_prior else "in-context")
    plain = pair.generate_autoregressive(prompt, max_new_tokens=16, **sampling)
    assert pair.generate(prompt, max_new_tokens=16, **sampling).token_ids == plain.token_ids
