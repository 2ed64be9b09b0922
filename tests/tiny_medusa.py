"""Random Medusa heads over random targets of two architectures, few ids, so that guesses hit often."""

from __future__ import annotations

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from nanospec.drafters.medusa import MedusaDrafter, MedusaShape
from nanospec.gathered_head import GatheredHead
from nanospec.target import Target
from tests.tiny_pair import randomize, tiny_target

FEW_IDS = 17
ARCHITECTURES = ("llama", "qwen3")


def target_of(architecture: str, seed: int, vocab_size: int = FEW_IDS) -> Target:
    """float64, hidden size 24."""
    if architecture == "llama":
        return tiny_target(seed, vocab_size)
    config = Qwen3Config(
        vocab_size=vocab_size, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=6, max_position_embeddings=128, tie_word_embeddings=False, eos_token_id=None,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).double()
    randomize(model, seed, std=0.12)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(8)
        model.lm_head.weight.mul_(8)
    return Target(model)


def tiny_medusa(
    target: Target,
    seed: int,
    num_heads: int = 3,
    num_layers: int = 1,
    outputs: str = "own",
    token_map: torch.Tensor | None = None,
    bias: bool = True,
) -> MedusaDrafter:
    """outputs: "own" rows per head, one matrix "shared" by all, or the "target"'s."""
    vocab_size, width = target.head_weight.shape
    num_rows = vocab_size if token_map is None else token_map.shape[0]
    num_outputs = {"own": num_heads, "shared": 1, "target": 0}[outputs]
    shape = MedusaShape(width, num_heads, num_layers, num_outputs, num_rows, bias)
    drafter = MedusaDrafter(shape, GatheredHead(target.head_weight, target.head_bias), token_map).to(target.dtype)
    randomize(drafter, seed)
    return drafter.requires_grad_(False)
