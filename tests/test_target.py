"""The target over trees: every node's logits are those of plain decoding along its branch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from nanospec.records import DraftTree
from nanospec.target import HEAD_CHUNK, Target
from nanospec.tree_layout import ancestor_mask, node_depth
from tests.tiny_pair import randomize, tiny_target

# float64 logits of size 10; the norms and rotary tables of transformers compute in float32
ATOL = 1e-5
SIZES = {
    "vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "head_dim": 8,
}  # fmt: skip
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"use_sliding_window": False}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"use_sliding_window": False}),
}


def family_model(name: str, **changes) -> PreTrainedModel:
    config_class, model_class, settings = FAMILIES[name]
    model = model_class(config_class(**{**SIZES, **settings, **changes})).double()
    randomize(model, seed=3)
    return model.eval()


def random_tree(parents: list[int], token_ids: list[int]) -> DraftTree:
    parent_pos = torch.tensor([parents])
    ancestors = ancestor_mask(parent_pos, len(parents))
    return DraftTree(
        torch.tensor([token_ids]), parent_pos, node_depth(ancestors), torch.zeros(1, len(parents)), ancestors
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_tree_logits_equal_one_full_forward_per_branch(name, attention):
    model = family_model(name)
    model.set_attn_implementation(attention)
    target, prompt = Target(model), torch.arange(3, 12)[None]
    tree = random_tree([0, 0, 0, 1, 3, 2, 2], [5, 9, 4, 33, 8, 9, 41])
    with torch.inference_mode():
        target.reset(64)
        prefill = target.prefill(prompt, num_top=3)
        output = target.judge(tree, num_top=2)
        for node in range(7):
            branch = tree.token_ids[0, tree.ancestor_mask[0, node]][None]
            full = model(torch.cat((prompt, branch), 1))
            torch.testing.assert_close(output.logits[0, node], full.logits[0, -1], atol=ATOL, rtol=0)
            assert output.top_ids[0, node, 0] == full.logits[0, -1].argmax()
        plain = model(prompt).logits[0]
        assert torch.equal(prefill.top_ids, plain.topk(3).indices)
        torch.testing.assert_close(prefill.last_logits[0], plain[-1], atol=ATOL, rtol=0)


@given(st.data())
def test_decoding_after_compaction_equals_recomputation(data):
    target = tiny_target(seed=1)
    num_nodes = data.draw(st.integers(2, 10))
    parents = [0] + [data.draw(st.integers(0, node - 1)) for node in range(1, num_nodes)]
    tree = random_tree(parents, data.draw(st.lists(st.integers(0, 60), min_size=num_nodes, max_size=num_nodes)))
    end = data.draw(st.integers(0, num_nodes - 1))
    prompt = torch.tensor([data.draw(st.lists(st.integers(0, 60), min_size=1, max_size=8))])
    with torch.inference_mode():
        target.reset(32)
        target.prefill(prompt)
        target.judge(tree)
        path = tree.ancestor_mask[0, end].nonzero().flatten()
        target.cache.compact(path, path.numel())
        logits = target.decode(torch.tensor([[7]]))
        sequence = torch.cat((prompt[0], tree.token_ids[0, path], torch.tensor([7])))
        torch.testing.assert_close(logits[0], target.model(sequence[None]).logits[0, -1], atol=ATOL, rtol=0)


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


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mistral", {"sliding_window": 16}, "sliding_window=16"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "sliding_window=8"),
    ],
)
def test_windows_are_refused_by_name(name, changes, message):
    with pytest.raises(NotImplementedError, match=message):
        Target(family_model(name, **changes))


def test_attention_kernels_that_break_tree_masks_are_refused_by_name():
    model = family_model("llama")
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(NotImplementedError, match="sdpa, eager, got 'flex_attention'"):
        Target(model)


def test_unknown_architectures_are_refused_with_the_choices():
    model = family_model("llama")
    model.config.model_type = "mamba"
    with pytest.raises(NotImplementedError, match="llama, mistral, qwen2, qwen3, got 'mamba'"):
        Target(model)


def test_decoding_needs_no_grad_mode_of_its_own():
    model = family_model("llama")
    target = Target(model)
    target.reset(8)
    logits = target.prefill(torch.tensor([[1, 2, 3]])).last_logits
    assert not logits.requires_grad
    assert not target.decode(torch.tensor([[4]])).requires_grad
