"""The target over trees: every node's logits are those of plain decoding along its branch."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanospec.kv_cache import CachePlace
from nanospec.records import DraftTree
from nanospec.target import HEAD_CHUNK, Target
from nanospec.tree_layout import ancestor_mask, node_depth
from tests.tiny_families import FAMILIES, VOCAB_SIZE, family_model
from tests.tiny_pair import tiny_target

# float64 logits of size 10; the norms and rotary tables of transformers compute in float32
ATOL = 1e-5


def random_tree(parents: list[int], token_ids: list[int]) -> DraftTree:
    parent_pos = torch.tensor([parents])
    ancestors = ancestor_mask(parent_pos, len(parents))
    return DraftTree(
        torch.tensor([token_ids]), parent_pos, node_depth(ancestors), torch.zeros(1, len(parents)), ancestors
    )


def branch_logits(target: Target, context: Tensor, tree: DraftTree) -> Tensor:
    """[T, V]: of every node, by one full forward of the plain model over the context and the node's branch."""
    branches = [tree.token_ids[0, seen] for seen in tree.ancestor_mask[0]]
    return torch.cat([target.model(torch.cat((context[0], branch))[None]).logits[:, -1] for branch in branches])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_tree_logits_equal_one_full_forward_per_branch(name, attention, monkeypatch):
    monkeypatch.setattr("nanospec.target.PREFILL_CHUNK", 4)  # windows of 5 reach into the chunk before
    model = family_model(name)
    if name != "gemma2":  # which has no sdpa
        model.set_attn_implementation(attention)
    target, prompt = Target(model), torch.arange(3, 14)[None]
    tree = random_tree([0, 0, 0, 1, 3, 2, 2], [5, 9, 4, 33, 8, 9, 41])
    with torch.inference_mode():
        target.reset(64)
        prefill = target.prefill(prompt, num_top=3)
        output = target.judge(tree, num_top=2)
        expected = branch_logits(target, prompt, tree)
        torch.testing.assert_close(output.logits[0], expected, atol=ATOL, rtol=0)
        assert torch.equal(output.top_ids[0, :, 0], expected.argmax(-1))
        plain = model(prompt).logits[0]
        assert torch.equal(prefill.top_ids, plain.topk(3).indices)
        torch.testing.assert_close(prefill.last_logits[0], plain[-1], atol=ATOL, rtol=0)


@functools.cache
def cached_target(name: str) -> Target:
    return Target(family_model(name))


@st.composite
def trees(draw: st.DrawFn, vocab_size: int) -> DraftTree:
    parents = [0] + [draw(st.integers(0, node - 1)) for node in range(1, draw(st.integers(2, 8)))]
    return random_tree(parents, [draw(st.integers(0, vocab_size - 1)) for _ in parents])


@settings(max_examples=15)
@pytest.mark.parametrize("name", sorted(FAMILIES))
@given(data=st.data())
def test_tree_after_tree_equals_recomputation(name, data):
    """Beyond windows and across them: the context grows by accepted paths, `place` says where on the device."""
    target = cached_target(name)
    draw_ids = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=8)
    context = torch.tensor([data.draw(draw_ids)])
    with torch.inference_mode():
        target.reset(48)
        target.prefill(context)
        for _ in range(3):
            tree = data.draw(trees(VOCAB_SIZE))
            num_nodes, length = tree.token_ids.shape[1], context.shape[1]
            target.cache.clear_uncertain()
            place = CachePlace(torch.tensor([length]), length + num_nodes + data.draw(st.integers(0, 3)))
            output = target.judge(tree, place=place if data.draw(st.booleans()) else None)
            torch.testing.assert_close(output.logits[0], branch_logits(target, context, tree), atol=ATOL, rtol=0)
            path = tree.ancestor_mask[0, data.draw(st.integers(0, num_nodes - 1))].nonzero().flatten()
            target.cache.compact(path, path.numel())
            context = torch.cat((context, tree.token_ids[:, path]), 1)
        logits = target.decode(torch.tensor([[7]]))
        plain = target.model(torch.cat((context, torch.tensor([[7]])), 1)).logits[:, -1]
        torch.testing.assert_close(logits, plain, atol=ATOL, rtol=0)


def test_prefill_in_chunks_equals_one_pass_and_never_holds_all_logits(monkeypatch):
    target = tiny_target(seed=2, window=256)
    monkeypatch.setattr("nanospec.target.PREFILL_CHUNK", 7)
    widths = []
    head = Target.head
    monkeypatch.setattr(Target, "head", lambda self, states: widths.append(states.shape[0]) or head(self, states))
    prompt = torch.randint(61, (1, 150), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        target.reset(151)
        prefill = target.prefill(prompt, num_top=3)
        plain = target.model(prompt, output_hidden_states=True)
    torch.testing.assert_close(prefill.features, plain.hidden_states[-1], atol=ATOL, rtol=0)
    assert torch.equal(prefill.top_ids, plain.logits[0].topk(3).indices)
    assert max(widths) <= HEAD_CHUNK


def test_decoding_needs_no_grad_mode_of_its_own():
    model = family_model("llama-bias")
    target = Target(model)
    target.reset(8)
    logits = target.prefill(torch.tensor([[1, 2, 3]])).last_logits
    assert not logits.requires_grad
    assert not target.decode(torch.tensor([[4]])).requires_grad
