"""Section (f), before any timing: kernels against their meaning, and greedy tokens with and without a CUDA graph."""

from __future__ import annotations

from functools import partial

import torch

from bench.gpu.kernel_checks import KERNEL_CHECKS, WrongResultError
from bench.gpu.random_pair import random_drafter, random_prompt, random_target
from bench.gpu.run_context import BenchRun, Figures, Part
from bench.gpu.sizes import PairSize
from bench.gpu.steps import VOCABS, graph_modes, new_decoder
from nanospec.drafters.eagle import EagleDrafter
from nanospec.target import Target
from nanospec.tree_shape import TreeShape

# Small enough for float32, in which every token must match: no near-tie can be blamed for a difference.
PAIR = PairSize("small float32 pair", "llama", 64, 96, 2, 4, 2, 16, 320, False)
TREE = TreeShape(4, 4, 16)
NUM_TOKENS, NUM_PROMPTS, DRAFT_SIZE, NUM_TOP = 32, 2, 64, 4


def correctness_parts(run: BenchRun) -> list[Part]:
    kernels = [Part(name, 5, partial(_checked, name=name)) for name in KERNEL_CHECKS]
    return [*kernels, Part("greedy tokens", 20, check_tokens)]


def _checked(run: BenchRun, name: str) -> Figures:
    KERNEL_CHECKS[name](run)
    return {"result": "equal to its reference"}


def check_tokens(run: BenchRun) -> Figures:
    """Every draft vocabulary, with and without a graph, against plain decoding; WrongResultError where one differs."""
    target, drafter = agreeing_pair(run.device)
    num_equal, num_accepted = 0, []
    frequent_ids = torch.arange(DRAFT_SIZE)
    for spec in VOCABS:
        vocab = f"static:{DRAFT_SIZE}" if spec.startswith("static") else spec
        for name, graph in graph_modes(run.device).items():
            decoder = new_decoder(target, drafter, vocab, TREE, NUM_TOP, DRAFT_SIZE, frequent_ids, graph)
            for seed in range(NUM_PROMPTS):
                prompt = random_prompt(PAIR.vocab_size, 12 + seed, run.device, seed)
                expected = decoder.generate_autoregressive(prompt, max_new_tokens=NUM_TOKENS).token_ids
                result = decoder.generate(prompt, max_new_tokens=NUM_TOKENS)
                if result.token_ids != expected:
                    raise WrongResultError(f"{vocab}, {name}: tokens differ from plain decoding, prompt {seed}")
                num_equal += 1
                num_accepted.append(result.stats.mean_accept_length)
    mean = sum(num_accepted) / len(num_accepted)
    return {
        "generations_equal": num_equal,
        "sides": list(graph_modes(run.device)),
        "mean_accept_length": round(mean, 3),
    }


def agreeing_pair(device: torch.device) -> tuple[Target, EagleDrafter]:
    """A random float32 pair in which the last token says most about the next, so that drafts are accepted at times."""
    target = random_target(PAIR, device, torch.float32)
    model = target.model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.04 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.12)
        model.get_input_embeddings().weight.mul_(8)
        model.get_output_embeddings().weight.mul_(8)
    drafter = random_drafter(PAIR, target.embed_tokens, target.head_weight)
    with torch.no_grad():
        for name, parameter in drafter.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(0.1)
        width = PAIR.hidden_size
        drafter.fc.weight[:, :width] = 4 * torch.eye(width, device=device)
    return target, drafter
