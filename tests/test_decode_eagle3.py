"""Exactness with EAGLE-3: features of three layers, a vocabulary of the draft's own, every policy inside it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from nanospec import SpeculativeDecoder, Target, TreeShape
from nanospec.checkpoints import save_drafter
from nanospec.drafters.eagle3 import Eagle3Drafter
from nanospec.gathered_head import GatheredHead
from tests.test_decoding_step import fixed_loop
from tests.tiny_pair import EAGLE3_LAYERS, VOCAB_SIZE, randomize, tiny_eagle3_drafter, tiny_eagle3_target, tiny_model

FREQUENT = torch.randperm(VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
POLICIES = ("full", "in-context", "static:30")
SAMPLED = {"temperature": 1.0, "seed": 5}


def decoder(policy: str, family: str = "llama", num_rows: int = VOCAB_SIZE, seed: int = 4, **options):
    target = tiny_eagle3_target(seed, family)
    drafter = tiny_eagle3_drafter(target, 2, num_rows, **options.pop("wiring", {}))
    options = {"tree": TreeShape(3, 3, 10), "frequent_ids": FREQUENT, "capacity": 30, **options}
    return SpeculativeDecoder(target, drafter, policy, **options)


@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
@settings(max_examples=6)
@given(
    num_rows=st.sampled_from([VOCAB_SIZE, 40, 12]),
    seed=st.integers(0, 3),
    prompt=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=8),
)
def test_output_is_autoregressive_output(family, policy, sampling, num_rows, seed, prompt):
    pair = decoder(policy, family, num_rows, seed)
    plain = pair.generate_autoregressive(prompt, max_new_tokens=20, **sampling)
    result = pair.generate(prompt, max_new_tokens=20, **sampling)
    assert result.token_ids == plain.token_ids
    assert plain.stats.observed_ids == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_the_drafter_is_right_now_and_then(policy):
    """Guards the property above: with a drafter that is never right it would hold for a broken walk too."""
    assert decoder(policy).generate([1, 2, 3], max_new_tokens=60).stats.mean_accept_length > 1.2


@pytest.mark.parametrize("policy", ["in-context", "in-context+prior"])
def test_ids_outside_the_drafts_vocabulary_are_counted(policy):
    pair = decoder(policy, num_rows=30)
    stats = pair.generate([1, 2, 3], max_new_tokens=20).stats
    assert 0 < stats.unsayable_ids < stats.observed_ids
    *_, last = pair.stream([1, 2, 3], max_new_tokens=20)
    assert (pair.last_stats.observed_ids, pair.last_stats.unsayable_ids) == (stats.observed_ids, stats.unsayable_ids)
    full = pair.with_vocab("full").generate([1, 2, 3], max_new_tokens=20).stats
    assert (full.observed_ids, full.unsayable_ids) == (0, 0)
    assert decoder("in-context").generate([1, 2, 3], max_new_tokens=20).stats.observed_ids == 0


def test_drafted_tokens_are_ids_of_the_drafts_vocabulary():
    pair = decoder("in-context", num_rows=30)
    loop, _ = pair.speculate(torch.tensor([[1, 2, 3]]), TreeShape(3, 3, 10), 20)
    drafted = set()
    loop.on_verdict = lambda tree, verdict, accepted: drafted.update(tree.token_ids[0, 1:].tolist())
    assert sum(map(len, loop.steps())) >= 20
    assert drafted - {-1} <= set(pair.drafter.target_ids.tolist())


@pytest.mark.parametrize("policy", ["full", "in-context"])
def test_compiled_output_is_eager_output(policy):
    eager = decoder(policy, num_rows=30)
    compiled = SpeculativeDecoder(
        eager.target, eager.drafter, policy, eager.tree, frequent_ids=FREQUENT, capacity=30, compile="eager"
    )
    result = compiled.generate([1, 2, 3], max_new_tokens=20)
    expected = eager.generate([1, 2, 3], max_new_tokens=20)
    assert result.token_ids == expected.token_ids
    assert result.stats.mean_accept_length == expected.stats.mean_accept_length  # the same trees, too


@pytest.mark.parametrize("num_rows", [VOCAB_SIZE, 30])
@pytest.mark.parametrize("policy", POLICIES)
def test_steps_of_fixed_shape_give_the_same_tokens_in_as_many_steps(policy, num_rows):
    pair = decoder(policy, num_rows=num_rows)
    steps = list(fixed_loop(pair, [1, 2, 3], 30).steps())
    plain = pair.generate([1, 2, 3], max_new_tokens=30)
    assert [token for step in steps for token in step][:30] == plain.token_ids
    assert len(steps) == plain.stats.target_passes


@pytest.mark.parametrize("policy", POLICIES)
def test_the_head_with_a_kernel_grows_the_same_trees(policy, monkeypatch):
    pair = decoder(policy, num_rows=30)
    expected = pair.generate([1, 2, 3], max_new_tokens=30)
    monkeypatch.setattr(GatheredHead, "has_kernel", lambda *_: True)
    monkeypatch.setattr(GatheredHead, "forward", None)  # and with it no other head is called
    result = pair.generate([1, 2, 3], max_new_tokens=30)
    assert result.token_ids == expected.token_ids
    assert result.stats.mean_accept_length == expected.stats.mean_accept_length


def test_a_draft_of_another_width_than_its_target_decodes():
    target, width = tiny_eagle3_target(4), 12
    like = tiny_eagle3_drafter(target, 2, 30)
    shape = replace(like.shape, hidden_size=width, head_dim=4)
    rope = LlamaConfig(hidden_size=width, num_attention_heads=4, head_dim=4)
    drafter = Eagle3Drafter(shape, like.wiring, rope, VOCAB_SIZE, 30, like.target_ids).to(target.dtype)
    randomize(drafter, 5)
    pair = SpeculativeDecoder(target, drafter.requires_grad_(False), "in-context", TreeShape(3, 3, 10), capacity=30)
    plain = pair.generate_autoregressive([1, 2, 3], max_new_tokens=20)
    assert pair.generate([1, 2, 3], max_new_tokens=20).token_ids == plain.token_ids
    assert [token for step in fixed_loop(pair, [1, 2, 3], 20).steps() for token in step][:20] == plain.token_ids


@pytest.mark.parametrize("layout", ["official", "speculators"])
def test_a_saved_pair_is_read_and_decodes_as_before(layout, tmp_path):
    pair = decoder("in-context", num_rows=30)
    pair.target.model.save_pretrained(tmp_path / "target")
    save_drafter(pair.drafter, tmp_path / "draft", layout, pair.target)
    options = {"tree": pair.tree, "capacity": 30, "device": "cpu"}
    again = SpeculativeDecoder.from_pretrained(tmp_path / "target", tmp_path / "draft", **options)
    expected, result = (one.generate([1, 2, 3], max_new_tokens=20) for one in (pair, again))
    assert result.token_ids == expected.token_ids
    assert result.stats.mean_accept_length == expected.stats.mean_accept_length
    assert result.stats.unsayable_ids == expected.stats.unsayable_ids > 0
    other = SpeculativeDecoder.from_pretrained(
        tmp_path / "target", tmp_path / "draft", feature_layers=[0, 1, 2], **options
    )
    assert other.target.feature_layers == (0, 1, 2)
    assert other.generate([1, 2, 3], max_new_tokens=20).token_ids == expected.token_ids


def test_features_are_the_inputs_of_the_layers():
    model = tiny_model(3, num_layers=EAGLE3_LAYERS)
    plain, layered = Target(model), Target(model, feature_layers=(4, 0, 2))
    prompt = torch.tensor([[3, 1, 4, 1, 5]])
    states = model(prompt, output_hidden_states=True).hidden_states
    for target in (plain, layered):
        target.reset(16)
    prefills = [target.prefill(prompt, 3) for target in (plain, layered)]
    torch.testing.assert_close(prefills[1].features, torch.cat([states[layer] for layer in (4, 0, 2)], -1))
    torch.testing.assert_close(prefills[0].features, states[-1])
    assert torch.equal(prefills[0].top_ids, prefills[1].top_ids)
    assert torch.equal(prefills[0].last_logits, prefills[1].last_logits)


@pytest.mark.parametrize(
    ("layers", "error"), [((2, 3, 3), ValueError), ((0, 7), ValueError), ((), ValueError), ((1, 2.0), TypeError)]
)
def test_layers_that_are_not_there_are_refused(layers, error):
    with pytest.raises(error, match="feature_layers must be"):
        Target(tiny_model(3, num_layers=EAGLE3_LAYERS), feature_layers=layers)
