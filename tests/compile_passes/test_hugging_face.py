"""Tiny random models of Hugging Face families: heads tied or not, capped or not, after sliced or whole states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from nanospec import DraftVocabulary
from tests.compile_passes.graph_capture import capture, count_calls, rewrite

V, K = 120, 16
ACTIVE, OTHER = [0, 5, 7, 118, 119], [3, 5, 64]
IDS = [[1, 2, 119, 4], [50, 60, 70, 80]]  # mostly outside of the vocabulary: they are embedded all the same
FAMILIES = ("Llama", "Qwen2", "Qwen3", "Mistral", "Gemma", "Gemma2", "Gemma3")
TIED = ("Gemma", "Gemma2", "Gemma3")
# Float32 products of 32 terms, added up in another order by compiled code, after one layer that does the same.
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(autouse=True)
def _forget_other_models() -> None:
    """The wrapper around every family's forward is one piece of code, of which Dynamo keeps eight versions at most."""
    torch._dynamo.reset()


def tiny_model(family: str) -> Any:
    """One layer, logits of a few units; the projections of its MLP have as many rows as the head."""
    torch.manual_seed(0)
    config = getattr(transformers, family + ("TextConfig" if family == "Gemma3" else "Config"))(
        vocab_size=V,
        hidden_size=32,
        intermediate_size=V,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    if family == "Gemma2":
        config._attn_implementation = "eager"
        config.final_logit_softcapping = 2.0
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval().requires_grad_(False)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == (family in TIED)
    return model


def draft_vocabulary(ids: list[int]) -> DraftVocabulary:
    vocabulary = DraftVocabulary(V, K)
    vocabulary.update(ids)
    return vocabulary


def check_restricted(logits: Tensor, expected: Tensor, active: list[int]) -> None:
    outside = torch.ones(V, dtype=torch.bool)
    outside[active] = False
    assert logits.shape == expected.shape
    torch.testing.assert_close(logits[..., active], expected[..., active], **ROUNDING)
    assert logits[..., outside].isneginf().all()


@pytest.mark.parametrize("head", ["found", "named"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_active_ids_are_the_models_own(family: str, head: str) -> None:
    model, vocabulary, ids = tiny_model(family), draft_vocabulary(ACTIVE), torch.tensor(IDS)
    options = {"vocabulary": vocabulary, "inner": "eager"} | ({"head": model.lm_head} if head == "named" else {})
    compiled = torch.compile(model, backend="nanospec", options=options)
    for num_kept in (1, 0):
        expected = model(ids, use_cache=False, logits_to_keep=num_kept).logits
        for active in (ACTIVE, OTHER):
            vocabulary.update(active)
            logits = compiled(ids, use_cache=False, logits_to_keep=num_kept).logits
            check_restricted(logits, expected, active)


@pytest.mark.parametrize("family", FAMILIES)
def test_inductor_compiles_the_restricted_model(family: str) -> None:
    model, vocabulary, ids = tiny_model(family), draft_vocabulary(ACTIVE), torch.tensor(IDS)
    compiled = torch.compile(model, backend="nanospec", options={"vocabulary": vocabulary})
    expected = model(ids, use_cache=False, logits_to_keep=1).logits
    for active in (ACTIVE, OTHER):
        vocabulary.update(active)
        check_restricted(compiled(ids, use_cache=False, logits_to_keep=1).logits, expected, active)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_product_is_gathered_and_the_embedding_stays(family: str) -> None:
    model, vocabulary, ids = tiny_model(family), draft_vocabulary(ACTIVE), torch.tensor(IDS)

    def forward(ids: Tensor) -> Tensor:
        return model(ids, use_cache=False).logits

    before = count_calls(capture(forward, ids)[0])
    rewritten, changed = rewrite(forward, ids, vocabulary=vocabulary)
    after = count_calls(rewritten)
    assert changed == ["gather_output_head"]
    assert after["shared_gathered_linear"] == 1
    assert after["linear"] == before["linear"] - 1
    assert after["embedding"] == before["embedding"] == 1
    assert after["tanh"] == before["tanh"]
