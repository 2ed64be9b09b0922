"""The EAGLE drafter with its cache against a plain forward pass that recomputes everything from the formulas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import LlamaConfig

from nanospec.drafters import eagle
from nanospec.drafters.eagle import EagleDrafter, EagleShape
from nanospec.gathered_head import GatheredHead
from nanospec.records import DraftVocab

# float64, two layers of width 12: the same sums in another order, over states that grow along a branch to about 100.
ATOL = 1e-9
ROPE_THETA, EPS = 500.0, 1e-5
HIDDEN, INNER, HEAD_DIM, VOCAB = 12, 20, 4, 29
CAPACITY = 64

VARIANTS = st.fixed_dictionaries(
    {
        "num_layers": st.sampled_from((1, 2)),
        "num_kv_heads": st.sampled_from((1, 2, 4)),
        "fc_bias": st.booleans(),
        "qkv_bias": st.booleans(),
        "norms": st.booleans(),
        "seed": st.integers(0, 2**16),
    }
)


class Level(NamedTuple):
    """One level of a random tree: token ids, position of every node's parent in the level above, visibility."""

    token_ids: Tensor
    parents: list[int]
    visible: Tensor


def build_drafter(
    num_layers: int, num_kv_heads: int, fc_bias: bool, qkv_bias: bool, seed: int, norms: bool = False
) -> EagleDrafter:
    """norms: all that an EAGLE-1 variant may add."""
    generator = torch.Generator().manual_seed(seed)
    shape = EagleShape(
        HIDDEN, INNER, 4, num_kv_heads, HEAD_DIM, num_layers, EPS, "silu", fc_bias, qkv_bias, *[norms] * 4
    )
    rope = LlamaConfig(
        hidden_size=HIDDEN, num_attention_heads=4, head_dim=HEAD_DIM, max_position_embeddings=CAPACITY,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
    )  # fmt: skip
    embedding = nn.Embedding(VOCAB, HIDDEN).double().requires_grad_(False)
    head = GatheredHead(torch.randn(VOCAB, HIDDEN, generator=generator, dtype=torch.float64))
    drafter = EagleDrafter(shape, rope, embedding, head).double().requires_grad_(False)
    with torch.no_grad():
        for parameter in (embedding.weight, *drafter.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4)
    drafter.reset(CAPACITY)
    return drafter


def plain_norm(hidden: Tensor, weight: Tensor) -> Tensor:
    return hidden / (hidden.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


def plain_rope(heads: Tensor) -> Tensor:
    """heads [h, n, d]: pairs (i, i + d/2) turned by the angle position / theta^(2i/d); angles float32 as published."""
    half = HEAD_DIM // 2
    frequency = 1.0 / ROPE_THETA ** (torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
    angle = torch.outer(torch.arange(heads.shape[1]).float(), frequency)
    cos, sin = angle.cos().double(), angle.sin().double()
    first, second = heads[..., :half], heads[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def plain_states(drafter: EagleDrafter, embedding: Tensor, token_ids: Tensor, features: Tensor) -> Tensor:
    """States [n, D] after every token of one sequence: token_ids [n], features [n, D], no cache."""
    weights, length = drafter.state_dict(), token_ids.shape[0]
    embedded = embedding[token_ids]
    if drafter.shape.embed_norm:
        embedded = plain_norm(embedded, weights["embed_layernorm"])
    hidden = torch.cat((embedded, features), -1) @ weights["fc.weight"].T + weights.get("fc.bias", 0.0)
    for index in range(drafter.shape.num_layers):
        layer = {name.removeprefix(f"layers.{index}."): value for name, value in weights.items()}
        normed = plain_norm(hidden, layer["input_layernorm"]) if "input_layernorm" in layer else hidden
        heads = normed @ layer["qkv_proj.weight"].T + layer.get("qkv_proj.bias", 0.0)
        heads = heads.view(length, -1, HEAD_DIM).transpose(0, 1)
        num_kv = drafter.shape.num_kv_heads
        query, key, value = heads.split([4, num_kv, num_kv])
        if drafter.shape.qk_norm:
            query, key = plain_norm(query, layer["q_norm"]), plain_norm(key, layer["k_norm"])
        query, key = plain_rope(query), plain_rope(key)
        key, value = (part.repeat_interleave(4 // num_kv, 0) for part in (key, value))
        scores = query @ key.mT / HEAD_DIM**0.5
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ value
        hidden = hidden + mixed.transpose(0, 1).reshape(length, -1) @ layer["o_proj.weight"].T
        gate, up = (plain_norm(hidden, layer["post_attention_layernorm"]) @ layer["gate_up_proj.weight"].T).chunk(2, -1)
        hidden = hidden + (gate * gate.sigmoid() * up) @ layer["down_proj.weight"].T
    return hidden


def random_prompt(seed: int, length: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed + 1)
    token_ids = torch.randint(VOCAB, (length,), generator=generator)
    return token_ids, torch.randn(length, HIDDEN, generator=generator, dtype=torch.float64)


def random_levels(seed: int, width: int, depth: int) -> Iterator[Level]:
    generator = torch.Generator().manual_seed(seed + 2)
    above = torch.zeros(width, 0, dtype=torch.bool)
    for level in range(depth):
        parents = torch.randint(width, (width,), generator=generator).tolist() if level else [0] * width
        above = torch.cat((above[parents], torch.eye(width, dtype=torch.bool)), 1)
        yield Level(torch.randint(VOCAB, (width,), generator=generator), parents, above)


@given(variant=VARIANTS, length=st.integers(1, 9), cut=st.integers(1, 9))
@settings(max_examples=40)
def test_extend_at_once_and_in_pieces_match_the_plain_pass(variant, length, cut) -> None:
    drafter = build_drafter(**variant)
    embedding = drafter._shared[0].weight
    token_ids, features = random_prompt(variant["seed"], length)
    expected = plain_states(drafter, embedding, token_ids, features)[-1]

    at_once = drafter.extend(token_ids[None], features[None])
    torch.testing.assert_close(at_once[0, 0], expected, rtol=0, atol=ATOL)
    drafter.reset(CAPACITY)
    for ids, part in zip(token_ids.split(cut), features.split(cut), strict=True):
        in_pieces = drafter.extend(ids[None], part[None])
    torch.testing.assert_close(in_pieces, at_once, rtol=0, atol=ATOL)


@given(variant=VARIANTS, length=st.integers(1, 5), width=st.integers(1, 3), depth=st.integers(1, 4))
@settings(max_examples=40)
def test_every_branch_of_a_tree_matches_the_plain_pass_over_that_branch(variant, length, width, depth) -> None:
    drafter = build_drafter(**variant)
    embedding = drafter._shared[0].weight
    token_ids, features = random_prompt(variant["seed"], length)
    states = drafter.extend(token_ids[None], features[None]).expand(1, width, HIDDEN)
    root = plain_states(drafter, embedding, token_ids, features)[-1]
    branches = [(token_ids, torch.cat((features, root[None])))] * width  # features: one more than tokens

    for level, (ids, parents, visible) in enumerate(random_levels(variant["seed"], width, depth), start=1):
        states = drafter.advance(ids[None], states[:, parents], level, visible[None])
        grown = []
        for token_id, parent in zip(ids, parents, strict=True):
            branch_ids, branch_features = branches[parent]
            branch_ids = torch.cat((branch_ids, token_id[None]))
            state = plain_states(drafter, embedding, branch_ids, branch_features)[-1]
            grown.append((branch_ids, torch.cat((branch_features, state[None]))))
        branches = grown
        expected = torch.stack([branch_features[-1] for _, branch_features in branches])
        torch.testing.assert_close(states[0], expected, rtol=0, atol=ATOL)


def test_extend_drops_the_rows_of_a_tree() -> None:
    drafter = build_drafter(2, 2, True, True, seed=3)
    token_ids, features = random_prompt(3, 8)
    states = drafter.extend(token_ids[None, :5], features[None, :5]).expand(1, 3, HIDDEN)
    for level, (ids, parents, visible) in enumerate(random_levels(3, 3, 3), start=1):
        states = drafter.advance(ids[None], states[:, parents], level, visible[None])
    after_tree = drafter.extend(token_ids[None, 5:], features[None, 5:])

    expected = plain_states(drafter, drafter._shared[0].weight, token_ids, features)[-1]
    torch.testing.assert_close(after_tree[0, 0], expected, rtol=0, atol=ATOL)
    assert drafter.cache.length == 8


def test_a_long_prompt_is_taken_in_chunks_to_the_same_states(monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = build_drafter(2, 2, True, True, seed=8)
    token_ids, features = random_prompt(8, 11)
    expected = plain_states(drafter, drafter._shared[0].weight, token_ids, features)[-1]
    monkeypatch.setattr(eagle, "EXTEND_CHUNK", 4)
    state = drafter.extend(token_ids[None], features[None])
    torch.testing.assert_close(state[0, 0], expected, rtol=0, atol=ATOL)
    assert drafter.cache.length == 11


def test_a_request_does_not_see_the_one_before() -> None:
    drafter = build_drafter(1, 2, False, False, seed=4)
    token_ids, features = random_prompt(4, 6)
    alone = drafter.extend(token_ids[None], features[None])
    drafter.reset(CAPACITY)
    drafter.extend(token_ids.flip(0)[None], features.flip(0)[None])
    drafter.reset(2 * CAPACITY)
    assert torch.equal(drafter.extend(token_ids[None], features[None]), alone)


def test_a_drafter_with_its_own_cache_shares_the_weights_and_nothing_else() -> None:
    drafter = build_drafter(1, 2, False, False, seed=4)
    token_ids, features = random_prompt(4, 6)
    expected = drafter.extend(token_ids[None], features[None])
    other = drafter.with_own_cache()
    assert other.fc.weight is drafter.fc.weight
    other.reset(CAPACITY)
    assert torch.equal(other.extend(token_ids[None], features[None]), expected)
    other.reset(CAPACITY)
    assert drafter.cache.length == 6
    assert other.cache.length == 0


@pytest.mark.parametrize("is_packed", [True, False], ids=["packed", "indexed"])
def test_logits_are_the_targets_head_over_the_draft_vocabulary(is_packed: bool) -> None:
    drafter = build_drafter(1, 4, False, False, seed=5)
    weight = drafter._shared[1].weight
    ids, count = torch.tensor([[7, 28, 0, 7, 7]]), torch.tensor([3], dtype=torch.int32)
    states = torch.randn(1, 2, HIDDEN, dtype=torch.float64)
    logits = drafter.logits(states, DraftVocab(ids, count, weight[ids] if is_packed else None))
    torch.testing.assert_close(logits[0, :, :3], states[0] @ weight[ids[0, :3]].T, rtol=0, atol=ATOL)
    assert logits[0, :, 3:].eq(-torch.inf).all()


def test_a_norm_before_the_head_is_applied() -> None:
    drafter = build_drafter(1, 4, False, False, seed=5, norms=True)
    weight, ids = drafter.head.weight, torch.arange(VOCAB)[None]
    states = torch.randn(1, 2, HIDDEN, dtype=torch.float64)
    logits = drafter.logits(states, DraftVocab(ids, torch.tensor([VOCAB], dtype=torch.int32), weight[None]))
    expected = plain_norm(states[0], drafter.lm_head_layernorm) @ weight.T
    torch.testing.assert_close(logits[0], expected, rtol=0, atol=ATOL)


def test_rotary_angles_do_not_depend_on_the_dtype_of_the_weights() -> None:
    drafter = build_drafter(1, 4, False, False, seed=6)
    expected = drafter.rotation(CAPACITY)
    drafter.bfloat16()
    for table, exact in zip(drafter.rotation(CAPACITY), expected, strict=True):
        torch.testing.assert_close(table, exact.bfloat16(), rtol=0, atol=0)


def test_the_targets_weights_are_neither_saved_nor_moved_with_the_drafter() -> None:
    drafter = build_drafter(1, 4, False, False, seed=7)
    embedding, head = drafter._shared
    drafter.to(torch.float32)
    assert embedding.weight.dtype == head.weight.dtype == torch.float64
    assert not [name for name in drafter.state_dict() if "embed" in name or "head" in name]


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_angles_that_depend_on_the_length_of_a_request_are_refused(rope_type: str) -> None:
    drafter = build_drafter(1, 2, fc_bias=False, qkv_bias=False, seed=1)
    rope = LlamaConfig(
        hidden_size=HIDDEN, num_attention_heads=4, head_dim=HEAD_DIM, max_position_embeddings=CAPACITY,
        rope_parameters={
            "rope_type": rope_type, "rope_theta": ROPE_THETA, "factor": 4.0, "short_factor": [1.0] * 2,
            "long_factor": [2.0] * 2, "original_max_position_embeddings": 16,
        },
    )  # fmt: skip
    embedding = nn.Embedding(VOCAB, HIDDEN)
    with pytest.raises(NotImplementedError, match=f"draft rope_type must not depend on .*, got '{rope_type}'"):
        EagleDrafter(drafter.shape, rope, embedding, drafter.head)
