"""Random language models of several families, and drafts that are such a model with some noise."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from tests.tiny_pair import VOCAB_SIZE, randomize

FAMILIES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}


def tiny_language_model(family: str, seed: int, vocab_size: int = VOCAB_SIZE, window: int = 128) -> PreTrainedModel:
    config_class, model_class = FAMILIES[family]
    config = config_class(
        vocab_size=vocab_size,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        max_position_embeddings=window,
        tie_word_embeddings=False,
        eos_token_id=None,
    )
    model = model_class(config).double()
    randomize(model, seed, std=0.12)
    with torch.no_grad():  # the last token says most about the next one, so that a drafter can be right
        model.model.embed_tokens.weight.mul_(8)
        model.lm_head.weight.mul_(8)
    return model.eval()


def noisy_copy(model: PreTrainedModel, noise: float, vocab_size: int = VOCAB_SIZE, seed: int = 1) -> PreTrainedModel:
    """The model with `noise` of its weights' size added, over another number of ids: rows cut off, or random ones."""
    family = model.config.model_type
    draft = tiny_language_model(family, seed, vocab_size)
    with torch.no_grad():
        for own, source in zip(draft.parameters(), model.parameters(), strict=True):
            rows = min(own.shape[0], source.shape[0])
            own.mul_(noise) if own.ndim == 2 else own.copy_(source)
            if own.ndim == 2:
                own[:rows] += source[:rows]
    return draft
