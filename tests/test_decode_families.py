"""Speculative output of every architecture: that of plain decoding, which is that of transformers."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nanospec.step_graphs as step_graphs
from nanospec import SpeculativeDecoder, TreeShape
from nanospec.speculation import SpeculativeLoop
from nanospec.step_graphs import FixedSteps
from nanospec.target import Target
from tests.test_decoding_step import Waits
from tests.tiny_families import FAMILIES, VOCAB_SIZE, family_drafter, family_model

NUM_NEW = 24
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
SHAPES = (TreeShape(1, 1, 2), TreeShape(2, 6, 12), TreeShape(4, 4, 24))
SAMPLED = {"temperature": 1.0, "seed": 5}


@functools.cache
def cached_target(name: str) -> Target:
    return Target(family_model(name))


def decoder_of(
    target: Target, shape: TreeShape = SHAPES[-1], vocab: str = "in-context", **options
) -> SpeculativeDecoder:
    return SpeculativeDecoder(target, family_drafter(target), vocab, shape, capacity=40, num_top=4, **options)


def fixed_step_tokens(decoder: SpeculativeDecoder, **sampling) -> list[int]:
    """By steps of one fixed shape, whose masks come from a length on the device."""
    loop: SpeculativeLoop
    loop, _ = decoder._speculate(decoder._request(PROMPT, NUM_NEW, **sampling), decoder.tree)
    loop.fixed_steps = FixedSteps(loop.decoding_step())
    return [token for step in loop.steps() for token in step][:NUM_NEW]


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_greedy_output_is_that_of_transformers(name):
    target = cached_target(name)
    decoder, accept_lengths = decoder_of(target), []
    for prompt in (PROMPT, [1, 1]):
        result, ids = decoder.generate(prompt, max_new_tokens=NUM_NEW), torch.tensor([prompt])
        plain = target.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_NEW, do_sample=False)
        assert result.token_ids == plain[0, len(prompt) :].tolist()
        assert decoder.generate_autoregressive(prompt, max_new_tokens=NUM_NEW).token_ids == result.token_ids
        accept_lengths.append(result.stats.mean_accept_length)
    assert max(accept_lengths) > 1, "trees of which nothing is accepted compact nothing"


@settings(max_examples=40)
@given(
    name=st.sampled_from(sorted(FAMILIES)),
    shape=st.sampled_from(SHAPES),
    vocab=st.sampled_from(("full", "in-context")),
    prompt=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=12),
    sampling=st.sampled_from(({}, SAMPLED, {"temperature": 0.7, "top_p": 0.8, "seed": 1})),
)
def test_output_is_autoregressive_output(name, shape, vocab, prompt, sampling):
    decoder = decoder_of(cached_target(name), shape, vocab)
    expected = decoder.generate_autoregressive(prompt, max_new_tokens=NUM_NEW, **sampling).token_ids
    assert decoder.generate(prompt, max_new_tokens=NUM_NEW, **sampling).token_ids == expected


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_sampled_output_of_fixed_steps_is_autoregressive_output(name, monkeypatch):
    monkeypatch.setattr(step_graphs, "MIN_WIDTH", 16)  # so that a request passes several widths
    decoder = decoder_of(cached_target(name))
    for sampling in ({}, SAMPLED):
        expected = decoder.generate_autoregressive(PROMPT, max_new_tokens=NUM_NEW, **sampling).token_ids
        assert fixed_step_tokens(decoder, **sampling) == expected


# Of each kind: one windowed mask and experts, a mask and a rotation per layer type, capped attention, longrope, MLA.
@pytest.mark.parametrize("name", ["qwen3_moe", "gemma3_text", "gemma2", "phi3-longrope", "deepseek_v3"])
def test_compiled_output_is_autoregressive_output(name):
    eager = decoder_of(cached_target(name))
    compiled = decoder_of(cached_target(name), compile="eager")
    for sampling in ({}, SAMPLED):
        expected = eager.generate_autoregressive(PROMPT, max_new_tokens=NUM_NEW, **sampling).token_ids
        assert compiled.generate(PROMPT, max_new_tokens=NUM_NEW, **sampling).token_ids == expected
        assert fixed_step_tokens(compiled, **sampling) == expected


def test_experts_by_the_grouped_product_give_the_same_tokens():
    model = family_model("mixtral-window").float()
    model.set_experts_implementation("grouped_mm")
    decoder = decoder_of(Target(model))
    expected = decoder.generate_autoregressive(PROMPT, max_new_tokens=NUM_NEW).token_ids
    assert decoder.generate(PROMPT, max_new_tokens=NUM_NEW).token_ids == expected


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "qwen3_moe", "phi3-longrope", "deepseek_v3", "mellum"])
@torch.inference_mode()
def test_nothing_inside_a_step_waits_for_the_device(name):
    target = cached_target(name)
    decoder = decoder_of(target)
    loop, _ = decoder._speculate(decoder._request(PROMPT, NUM_NEW), decoder.tree)
    loop.fixed_steps = FixedSteps(loop.decoding_step())
    next(steps := loop.steps())
    next(steps)
    with Waits() as waits:
        loop.fixed_steps._step.run(64)
    assert waits.found == []
