"""What one process and the ranks of a tensor-parallel target both run, so that it can be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from nanospec import SpeculativeDecoder, Target, TreeShape
from nanospec.checkpoints.causal_lm import build_causal_lm_drafter
from nanospec.drafters.drafter import Drafter
from nanospec.drafters.prompt_lookup import PromptLookupDrafter
from nanospec.target_families import FAMILIES
from tests.tiny_families import family_drafter, family_model
from tests.tiny_medusa import tiny_medusa
from tests.tiny_pair import EAGLE3_LAYERS, VOCAB_SIZE, tiny_eagle3_drafter, tiny_model

PROMPT, NUM_TOKENS = [3, 1, 4, 1, 5, 9, 2, 6], 12
TREE = TreeShape(3, 3, 9)
FREQUENT = torch.randperm(VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
POLICIES = {2: ("in-context", "hybrid:9+prior", "hybrid:auto", "static:20", "full"), 3: ("in-context", "full")}
SAMPLING = {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.2}
# One of each architecture that may be sharded.
SHARDED_FAMILIES = (
    "gemma", "gemma2", "gemma3_text", "llama-bias", "mistral-window", "qwen2-window", "qwen3-window",
)  # fmt: skip


def save_models(directory: Path, size: int) -> None:
    """The models that `size` ranks load."""
    if size == 2:
        tiny_model(3).save_pretrained(directory / "model")
        for name in SHARDED_FAMILIES:
            family_model(name).save_pretrained(directory / name)
    else:  # with heads for three ranks; the deep one is a target of EAGLE-3
        for name, num_layers in (("model", 2), ("deep", EAGLE3_LAYERS)):
            model = tiny_model(3, num_layers=num_layers, family="qwen3", num_heads=(6, 3))
            model.save_pretrained(directory / name)
        tiny_model(3).save_pretrained(directory / "two-heads")


def load_model(path: Path, **distributed: Any) -> PreTrainedModel:
    """A saved model, with the attention that its family wants first."""
    attention = FAMILIES[AutoConfig.from_pretrained(path).model_type].attention[0]
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation=attention, **distributed)


def eagle3_drafter(path: Path) -> Drafter:
    """With a head of its own, whole in every process."""
    return tiny_eagle3_drafter(Target(load_model(path)), 1, num_rows=40)


def decoder_of(target: Target, drafter: Drafter, vocab: str = "in-context") -> SpeculativeDecoder:
    return SpeculativeDecoder(target, drafter, vocab, TREE, capacity=40, frequent_ids=FREQUENT)


def greedy(decoder: SpeculativeDecoder, num_tokens: int = NUM_TOKENS) -> tuple[list[int], int, list[list[int]]]:
    """Token ids, target passes, and the ids to draft from next."""
    result = decoder.generate(PROMPT, max_new_tokens=num_tokens)
    chosen = decoder.vocab.select()
    return result.token_ids, result.stats.target_passes, chosen.draft_ids[:, : int(chosen.count[0])].tolist()


def decode(target: Target, drafter: Drafter, size: int) -> dict[str, Any]:
    """All that a decoder does, by name; for `size` ranks, or to be compared with them."""
    results: dict[str, Any] = {vocab: greedy(decoder_of(target, drafter, vocab)) for vocab in POLICIES[size]}
    decoder = decoder_of(target, drafter)
    results["plain"] = decoder.generate_autoregressive(PROMPT, max_new_tokens=NUM_TOKENS).token_ids
    results["sampled"] = decoder.generate(PROMPT, max_new_tokens=NUM_TOKENS, seed=5, **SAMPLING).token_ids
    requests = [PROMPT, PROMPT[:3], {"input_ids": PROMPT[3:], "seed": 2, "temperature": 0.7}]
    batch = decoder.generate_many(requests, max_batch=2, max_new_tokens=NUM_TOKENS)
    results["batch"] = {place: result.token_ids for place, result in batch}
    return results


def language_model_drafter(target: Target, seed: int) -> Drafter:
    return build_causal_lm_drafter(tiny_model(seed), target)


def decode_other_drafts(target: Target) -> dict[str, Any]:
    """Medusa heads on the target's head, a language model and prompt lookup."""
    drafters = {
        "medusa": tiny_medusa(target, 1, outputs="target"),
        "language model": language_model_drafter(target, 4),
        "prompt lookup": PromptLookupDrafter(target.device),
    }
    return {name: greedy(decoder_of(target, drafter)) for name, drafter in drafters.items()}


def decode_family(path: Path, **distributed: Any) -> tuple[list[int], int, list[list[int]]]:
    target = Target(load_model(path, **distributed))
    return greedy(SpeculativeDecoder(target, family_drafter(target), tree=TREE), num_tokens=8)
