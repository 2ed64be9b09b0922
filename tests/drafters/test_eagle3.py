"""The EAGLE-3 drafter with its cache against a plain forward pass that recomputes everything from the formulas."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import LlamaConfig

from nanospec.drafters.eagle import EagleShape
from nanospec.drafters.eagle3 import Eagle3Drafter, Eagle3Wiring, default_feature_layers
from nanospec.gathered_head import GatheredHead
from nanospec.records import DraftVocab
from tests.drafters.test_eagle import (
    ATOL,
    CAPACITY,
    EPS,
    HEAD_DIM,
    INNER,
    ROPE_THETA,
    VOCAB,
    plain_norm,
    plain_rope,
    random_levels,
)

HIDDEN, TARGET_HIDDEN, NUM_FEATURES = 12, 10, 3
TARGET_IDS = torch.tensor([0, 3, 4, 11, 28])

VARIANTS = st.fixed_dictionaries(
    {
        "num_layers": st.sampled_from((1, 2)),
        "num_kv_heads": st.sampled_from((1, 2, 4)),
        "qk_norm": st.booleans(),
        "fc_bias": st.booleans(),
        "fc_norm": st.booleans(),
        "norm_before_fc": st.booleans(),
        "norm_before_residual": st.booleans(),
        "norm_output": st.booleans(),
        "seed": st.integers(0, 2**16),
    }
)


def build_drafter(
    num_layers: int = 1,
    num_kv_heads: int = 2,
    qk_norm: bool = False,
    fc_bias: bool = False,
    seed: int = 0,
    own_embedding: bool = True,
    **wiring: bool,
) -> Eagle3Drafter:
    target_hidden = TARGET_HIDDEN if own_embedding else HIDDEN
    shape = EagleShape(
        HIDDEN, INNER, 4, num_kv_heads, HEAD_DIM, num_layers, EPS, "silu", fc_bias, qkv_bias=False, qk_norm=qk_norm,
        input_norm=True, two_inputs=True, fc_inputs=NUM_FEATURES * target_hidden,
    )  # fmt: skip
    rope = LlamaConfig(
        hidden_size=HIDDEN, num_attention_heads=4, head_dim=HEAD_DIM, max_position_embeddings=CAPACITY,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
    )  # fmt: skip
    embedding = VOCAB if own_embedding else nn.Embedding(VOCAB, HIDDEN).double().requires_grad_(False)
    wires = Eagle3Wiring((2, 3, 4), target_hidden, **wiring)
    drafter = Eagle3Drafter(shape, wires, rope, embedding, TARGET_IDS.shape[0], TARGET_IDS)
    drafter = drafter.double().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in drafter.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4)
    drafter.reset(CAPACITY)
    return drafter


def plain_fuse(drafter: Eagle3Drafter, features: Tensor) -> Tensor:
    """Features [n, 3 Ht] -> [n, D]."""
    weights, wiring = drafter.state_dict(), drafter.wiring
    if wiring.norm_before_fc:
        features = plain_norm(features, weights["input_norm"])
    if wiring.fc_norm:
        parts = features.split(wiring.target_hidden_size, -1)
        features = torch.cat([plain_norm(part, weights[f"fc_norm.{i}"]) for i, part in enumerate(parts)], -1)
    return features @ weights["fc.weight"].T + weights.get("fc.bias", 0.0)


def plain_outputs(drafter: Eagle3Drafter, token_ids: Tensor, states: Tensor) -> Tensor:
    """Un-normed outputs [n, D] after every token of one sequence: token_ids [n], states before them [n, D]."""
    weights, length = drafter.state_dict(), token_ids.shape[0]
    hidden = states
    for index in range(drafter.shape.num_layers):
        layer = {name.removeprefix(f"layers.{index}."): value for name, value in weights.items()}
        if index == 0:
            normed = plain_norm(states, layer["hidden_norm"])
            embedded = plain_norm(weights["embed_tokens.weight"][token_ids], layer["input_layernorm"])
            attention_input = torch.cat((embedded, normed), -1)
            hidden = normed if drafter.wiring.norm_before_residual else states
        else:
            attention_input = plain_norm(hidden, layer["input_layernorm"])
        heads = (attention_input @ layer["qkv_proj.weight"].T).view(length, -1, HEAD_DIM).transpose(0, 1)
        num_kv = drafter.shape.num_kv_heads
        query, key, value = heads.split([4, num_kv, num_kv])
        if drafter.shape.qk_norm:
            query, key = plain_norm(query, layer["q_norm"]), plain_norm(key, layer["k_norm"])
        query, key = plain_rope(query), plain_rope(key)
        key, value = (part.repeat_interleave(4 // num_kv, 0) for part in (key, value))
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed = (query @ key.mT / HEAD_DIM**0.5).masked_fill(future, -torch.inf).softmax(-1) @ value
        hidden = hidden + mixed.transpose(0, 1).reshape(length, -1) @ layer["o_proj.weight"].T
        gate, up = (plain_norm(hidden, layer["post_attention_layernorm"]) @ layer["gate_up_proj.weight"].T).chunk(2, -1)
        hidden = hidden + (gate * gate.sigmoid() * up) @ layer["down_proj.weight"].T
    return hidden


def plain_step(drafter: Eagle3Drafter, token_ids: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """Next state [D] and logits over the draft's own ids after the last token."""
    output = plain_outputs(drafter, token_ids, states)[-1]
    normed = plain_norm(output, drafter.norm)
    return (normed if drafter.wiring.norm_output else output), normed @ drafter.lm_head.weight.T


def random_prompt(seed: int, length: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed + 1)
    token_ids = torch.randint(VOCAB, (length,), generator=generator)
    width = NUM_FEATURES * TARGET_HIDDEN
    return token_ids, torch.randn(length, width, generator=generator, dtype=torch.float64)


def own_vocab() -> DraftVocab:
    rows = torch.arange(TARGET_IDS.shape[0])[None]
    return DraftVocab(TARGET_IDS[None], torch.tensor([TARGET_IDS.shape[0]], dtype=torch.int32), None, True, rows)


@given(variant=VARIANTS, length=st.integers(1, 7), cut=st.integers(1, 7))
@settings(max_examples=40)
def test_extend_at_once_and_in_pieces_match_the_plain_pass(variant, length, cut) -> None:
    drafter = build_drafter(**variant)
    token_ids, features = random_prompt(variant["seed"], length)
    expected, logits = plain_step(drafter, token_ids, plain_fuse(drafter, features))

    at_once = drafter.extend(token_ids[None], features[None])
    torch.testing.assert_close(at_once[0, 0], expected, rtol=0, atol=ATOL)
    torch.testing.assert_close(drafter.logits(at_once, own_vocab())[0, 0], logits, rtol=0, atol=ATOL)
    drafter.reset(CAPACITY)
    for ids, part in zip(token_ids.split(cut), features.split(cut), strict=True):
        in_pieces = drafter.extend(ids[None], part[None])
    torch.testing.assert_close(in_pieces, at_once, rtol=0, atol=ATOL)


@given(variant=VARIANTS, length=st.integers(1, 4), width=st.integers(1, 3), depth=st.integers(1, 3))
@settings(max_examples=40)
def test_every_branch_of_a_tree_matches_the_plain_pass_over_that_branch(variant, length, width, depth) -> None:
    drafter = build_drafter(**variant)
    token_ids, features = random_prompt(variant["seed"], length)
    states = drafter.extend(token_ids[None], features[None]).expand(1, width, HIDDEN)
    fused = plain_fuse(drafter, features)
    root, _ = plain_step(drafter, token_ids, fused)
    branches = [(token_ids, torch.cat((fused, root[None])))] * width  # states: one more than tokens

    for level, (ids, parents, visible) in enumerate(random_levels(variant["seed"], width, depth), start=1):
        states = drafter.advance(ids[None], states[:, parents], level, visible[None])
        grown, expected = [], []
        for token_id, parent in zip(ids, parents, strict=True):
            branch_ids, branch_states = branches[parent]
            branch_ids = torch.cat((branch_ids, token_id[None]))
            state, logits = plain_step(drafter, branch_ids, branch_states)
            grown.append((branch_ids, torch.cat((branch_states, state[None]))))
            expected.append(logits)
        branches = grown
        torch.testing.assert_close(
            states[0], torch.stack([branch_states[-1] for _, branch_states in branches]), rtol=0, atol=ATOL
        )
        logits = drafter.logits(states, own_vocab())[0]
        torch.testing.assert_close(logits, torch.stack(expected), rtol=0, atol=ATOL)


def test_an_embedding_that_is_the_targets_is_neither_saved_nor_moved() -> None:
    drafter = build_drafter(own_embedding=False)
    drafter.to(torch.float32)
    assert drafter._shared[0].weight.dtype == torch.float64
    assert not [name for name in drafter.state_dict() if "embed" in name]


def test_its_own_head_follows_the_drafter_to_another_dtype_and_its_ids_stay_integers() -> None:
    drafter = build_drafter()
    assert drafter.head is drafter.head
    drafter.to(torch.float32)
    assert drafter.head.weight.dtype == torch.float32
    assert drafter.target_ids.dtype == torch.int64
    assert "target_ids" not in drafter.state_dict()


def test_without_a_head_of_its_own_it_scores_with_the_targets() -> None:
    drafter = build_drafter(own_embedding=False)
    head = GatheredHead(torch.randn(VOCAB, HIDDEN, dtype=torch.float64))
    shared = Eagle3Drafter(drafter.shape, drafter.wiring, LlamaConfig(), drafter._shared[0], head)
    assert shared.head is head
    assert not [name for name in shared.state_dict() if "head" in name]


@pytest.mark.parametrize(("num_layers", "expected"), [(7, (2, 3, 4)), (32, (2, 16, 29)), (36, (2, 18, 33))])
def test_default_feature_layers_are_those_of_training(num_layers: int, expected: tuple[int, ...]) -> None:
    assert default_feature_layers(num_layers) == expected
