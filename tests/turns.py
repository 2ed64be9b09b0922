"""Decoders for conversations, and what a turn of them yields."""

from __future__ import annotations

from functools import cache

import torch

from nanospec import SpeculativeDecoder, TreeShape
from nanospec.drafters import CausalLMDrafter, JoinedDrafter, PromptLookupDrafter
from nanospec.step_graphs import FixedSteps
from nanospec.target import Target
from tests.tiny_language_models import noisy_copy, tiny_language_model
from tests.tiny_medusa import FEW_IDS, tiny_medusa
from tests.tiny_mtp import tiny_mtp
from tests.tiny_pair import tiny_drafter, tiny_eagle3_drafter, tiny_eagle3_target, tiny_target

TREE = TreeShape(3, 3, 9)
FREQUENT = torch.randperm(FEW_IDS, generator=torch.Generator().manual_seed(0))
FIGURES = ("new_tokens", "target_passes", "steps", "step_tokens", "active_rows", "observed_ids", "unsayable_ids")


def build(kind: str, vocab: str = "in-context", **options) -> SpeculativeDecoder:
    if kind == "mtp":
        target, drafter = tiny_mtp("glm4_moe", 1)
    elif kind == "eagle3":
        target = tiny_eagle3_target(1)
        drafter = tiny_eagle3_drafter(target, 2, num_rows=40)
    elif kind == "causal-lm":
        model = tiny_language_model("qwen3", seed=3)
        target, drafter = Target(model), CausalLMDrafter(noisy_copy(model, noise=0.3), 61)
    elif kind == "medusa":
        target = tiny_target(4, vocab_size=FEW_IDS)
        drafter = tiny_medusa(target, 2)
    else:
        target = tiny_target(4)
        eagle, lookup = tiny_drafter(target, 2, std=0.02), PromptLookupDrafter()
        drafter = {"eagle": eagle, "prompt-lookup": lookup, "joined": JoinedDrafter(eagle, lookup)}[kind]
    return SpeculativeDecoder(target, drafter, vocab, TREE, capacity=25, frequent_ids=FREQUENT, **options)


def in_fixed_steps(decoder: SpeculativeDecoder) -> SpeculativeDecoder:
    """The decoder, whose steps now run as a captured graph would run them."""
    plain = decoder._speculate

    def with_fixed_steps(*arguments):
        loop, stats = plain(*arguments)
        loop.fixed_steps = FixedSteps(loop.decoding_step())
        return loop, stats

    decoder._speculate = with_fixed_steps  # type: ignore[method-assign]
    return decoder


@cache
def decoders(kind: str, vocab: str, is_fixed: bool) -> tuple[SpeculativeDecoder, SpeculativeDecoder]:
    """Two over weights of the same numbers: one for conversations, one that reads every text whole."""
    pair = build(kind, vocab), build(kind, vocab)
    return (in_fixed_steps(pair[0]), in_fixed_steps(pair[1])) if is_fixed else pair


def answer(decoder: SpeculativeDecoder, text: list[int], num_pieces: int | None = None, **options) -> list[int]:
    """Tokens of a stream, which is closed after so many pieces."""
    pieces, tokens = decoder.stream(text, **options), []
    for number, piece in enumerate(pieces):
        if number == num_pieces:
            break
        tokens += piece.token_ids
    pieces.close()
    return tokens


def figures(decoder: SpeculativeDecoder) -> list[int]:
    return [getattr(decoder.last_stats, name) for name in FIGURES]
