"""A language model as drafter: its trees against plain forward passes, the tokens of the target with any of them."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, MistralConfig, MistralForCausalLM

import nanospec.step_graphs as step_graphs
from nanospec import SpeculativeDecoder, TreeShape
from nanospec.drafters import CausalLMDrafter, Drafter
from nanospec.drafters.drafter import FixedShapeDrafter
from nanospec.kv_cache import CachePlace
from nanospec.records import DraftVocab
from nanospec.target import Target
from tests.test_decoding_step import Waits, fixed_loop, tokens
from tests.tiny_language_models import noisy_copy, tiny_language_model
from tests.tiny_pair import VOCAB_SIZE, randomize

# float64; the norms and rotary tables of transformers compute in float32
ATOL = 1e-5
FREQUENT = torch.randperm(VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
SHAPES = (TreeShape(1, 1, 2), TreeShape(4, 1, 5), TreeShape(3, 3, 10), TreeShape(2, 4, 16))
GREEDY_OR_SAMPLED = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"temperature": st.just(1.0), "seed": st.integers(0, 99)}),
    st.fixed_dictionaries({"temperature": st.just(0.7), "repetition_penalty": st.just(1.3), "seed": st.integers(0, 9)}),
)
PROMPTS = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=12)


def pair(
    family: str = "llama", vocab: str = "full", shape: TreeShape = SHAPES[2], noise: float = 0.5, rows: int = VOCAB_SIZE
) -> SpeculativeDecoder:
    model = tiny_language_model(family, seed=3)
    drafter = CausalLMDrafter(noisy_copy(model, noise, rows), VOCAB_SIZE)
    return SpeculativeDecoder(Target(model), drafter, vocab, shape, capacity=30, frequent_ids=FREQUENT)


DECODERS = st.builds(
    pair,
    family=st.sampled_from(["llama", "qwen3"]),
    vocab=st.sampled_from(["full", "in-context", "static:9"]),
    shape=st.sampled_from(SHAPES),
    noise=st.sampled_from([0.0, 0.5, 1.0]),
    rows=st.sampled_from([VOCAB_SIZE, 50, 70]),
)


@settings(max_examples=40)
@given(DECODERS, PROMPTS, st.integers(1, 30), GREEDY_OR_SAMPLED)
def test_output_is_the_targets_own(decoder, prompt, max_new_tokens, sampling):
    plain = decoder.generate_autoregressive(prompt, max_new_tokens=max_new_tokens, **sampling)
    result = decoder.generate(prompt, max_new_tokens=max_new_tokens, **sampling)
    assert result.token_ids == plain.token_ids


@settings(max_examples=25)
@given(DECODERS, PROMPTS, st.integers(1, 30), GREEDY_OR_SAMPLED)
def test_steps_of_fixed_shape_give_the_same_tokens_in_as_many_steps(decoder, prompt, max_new_tokens, sampling):
    expected = decoder.generate(prompt, max_new_tokens=max_new_tokens, **sampling)
    with pytest.MonkeyPatch.context() as patch:  # so that a request passes several widths
        patch.setattr(step_graphs, "MIN_WIDTH", 16)
        steps = list(fixed_loop(decoder, prompt, max_new_tokens, **sampling).steps())
    assert [token for step in steps for token in step][:max_new_tokens] == expected.token_ids
    assert len(steps) == expected.stats.target_passes


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("shape", [TreeShape(1, 1, 2), TreeShape(5, 1, 6), TreeShape(1, 4, 5)])
def test_a_draft_equal_to_the_target_accepts_everything(family, shape):
    decoder = pair(family, "full", shape, noise=0.0)
    for prompt in ([5], [1, 2, 3, 4]):
        stats = decoder.generate(prompt, max_new_tokens=1 + 6 * (shape.depth + 1)).stats
        assert stats.mean_accept_length == shape.depth + 1
        assert stats.steps == 6


def test_a_draft_with_noise_is_right_now_and_then():
    """Guards the properties above, which a draft that is never right, or always, would not test."""
    length = pair().generate([1, 2, 3], max_new_tokens=60).stats.mean_accept_length
    assert 1.2 < length < 3.9


@settings(max_examples=30)
@given(st.sampled_from(["llama", "qwen3"]), PROMPTS, st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_states_of_a_tree_are_those_of_a_plain_forward_per_branch(family, prompt, width, depth, seed):
    model = tiny_language_model(family, seed=7)
    drafter = CausalLMDrafter(model, VOCAB_SIZE)
    generator = torch.Generator().manual_seed(seed)
    branches = [list(prompt)] * width
    visible = torch.zeros(width, 0, dtype=torch.bool)
    with torch.inference_mode():
        drafter.reset(64)
        drafter.begin(torch.tensor([prompt[:1]]))
        if len(prompt) > 1:
            state = drafter.extend(torch.tensor([prompt[1:]]), None)
            torch.testing.assert_close(state[0, 0], last_state(model, prompt), atol=ATOL, rtol=0)
        for level in range(1, depth + 1):
            parents = torch.randint(width, (width,), generator=generator).tolist() if level > 1 else [0] * width
            ids = torch.randint(VOCAB_SIZE, (width,), generator=generator)
            visible = torch.cat((visible[parents], torch.eye(width, dtype=torch.bool)), 1)
            states = drafter.advance(ids[None], None, level, visible[None])
            place = CachePlace(torch.tensor([len(prompt) - 1]), 60)
            at_place = drafter.advance_at(ids[None], None, level, visible[None], place, drafter.memory())
            branches = [[*branches[parent], int(token)] for parent, token in zip(parents, ids, strict=True)]
            expected = torch.stack([last_state(model, branch) for branch in branches])
            torch.testing.assert_close(states[0], expected, atol=ATOL, rtol=0)
            torch.testing.assert_close(at_place, states, atol=ATOL, rtol=0)


@torch.inference_mode()
def test_layers_with_a_window_see_as_far_as_in_a_plain_forward():
    """Rows of a tree lie further back than their tokens: three levels of two nodes, and a window of two tokens."""
    sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = MistralForCausalLM(MistralConfig(sliding_window=2, **sizes, **heads)).double().eval()
    randomize(model, seed=2)
    drafter, visible = CausalLMDrafter(model, VOCAB_SIZE), torch.zeros(2, 0, dtype=torch.bool)
    drafter.reset(32)
    drafter.begin(torch.tensor([[7]]))
    drafter.extend(torch.tensor([[8, 9, 10]]), None)
    branches = [[7, 8, 9, 10], [7, 8, 9, 10]]
    for level in (1, 2, 3):
        visible = torch.cat((visible, torch.eye(2, dtype=torch.bool)), 1)
        ids = torch.tensor([[level, level + 20]])
        branches = [[*branch, int(token)] for branch, token in zip(branches, ids[0], strict=True)]
        expected = torch.stack([last_state(model, branch) for branch in branches])
        states = drafter.advance(ids, None, level, visible[None])
        torch.testing.assert_close(states[0], expected, atol=ATOL, rtol=0)
        place = CachePlace(torch.tensor([3]), 20)
        at_place = drafter.advance_at(ids, None, level, visible[None], place, drafter.memory())
        torch.testing.assert_close(at_place[0], expected, atol=ATOL, rtol=0)


def last_state(model, token_ids: list[int]) -> torch.Tensor:
    return model.base_model(torch.tensor([token_ids])).last_hidden_state[0, -1]


@torch.inference_mode()
def test_extend_by_the_first_tokens_equals_extend_and_leaves_the_rest_uncertain():
    drafter = CausalLMDrafter(tiny_language_model("llama", seed=7), VOCAB_SIZE)
    drafter.reset(32)
    drafter.begin(torch.tensor([[4]]))
    drafter.extend(torch.tensor([[5, 6]]), None)
    place, ids = CachePlace(torch.tensor([2]), 20), torch.tensor([[7, 8, 9]])
    at_place = drafter.extend_at(ids, None, torch.tensor([2]), place, drafter.memory())
    assert drafter.body.cache.length == 3
    expected = drafter.extend(ids[:, :2], None)
    torch.testing.assert_close(at_place, expected, atol=ATOL, rtol=0)


def test_it_is_a_drafter_of_fixed_shape():
    drafter = CausalLMDrafter(tiny_language_model("llama", 1), VOCAB_SIZE)
    assert isinstance(drafter, Drafter)
    assert isinstance(drafter, FixedShapeDrafter)


@pytest.mark.parametrize("rows", [VOCAB_SIZE, 50])
@torch.inference_mode()
def test_nothing_inside_a_step_waits_for_the_device(rows):
    loop = fixed_loop(pair(vocab="in-context", rows=rows), [1, 2, 3], 20)
    next(steps := loop.steps())
    next(steps)
    with Waits() as waits:
        loop.fixed_steps._step.run(256)
    assert waits.found == []


def test_what_earlier_requests_left_in_the_caches_does_not_matter():
    decoder = pair()
    expected = tokens(fixed_loop(decoder, [1, 2, 3], 30))
    with torch.inference_mode():
        decoder.drafter.body.cache.buffer.fill_(torch.nan)
    assert tokens(fixed_loop(decoder, [1, 2, 3], 30)) == expected


def test_a_step_reads_the_root_and_what_follows_it_at_every_width(monkeypatch):
    """A chain accepted in full takes as many rows as a step has: the draft's cache holds the root besides."""
    monkeypatch.setattr(step_graphs, "MIN_WIDTH", 16)
    decoder = pair(shape=TreeShape(4, 1, 5), noise=1.0)
    loop = fixed_loop(decoder, [1, 2, 3], 60)
    run, widths = loop.fixed_steps._step.run, []

    def checked(width: int):
        assert decoder.drafter.body.cache.length + 5 <= width
        widths.append(width)
        return run(width)

    loop.fixed_steps._step.run = checked
    tokens(loop)
    assert len(set(widths)) > 3


def drafted_ids(decoder: SpeculativeDecoder) -> set[int]:
    """Ids of all nodes below the roots of a long generation."""
    loop, _ = decoder.speculate(torch.tensor([[1, 2, 3]]), decoder.tree, 60)
    drafted: set[int] = set()
    loop.on_verdict = lambda tree, verdict, num_accepted: drafted.update(tree.token_ids[0, 1:].tolist())
    for _ in loop.steps():
        pass
    return drafted - {-1}


@pytest.mark.parametrize("vocab", ["full", "in-context", "static:60"])
def test_ids_outside_either_vocabulary_are_never_drafted(vocab):
    assert max(drafted_ids(pair(vocab=vocab, noise=0.1, rows=50))) < 50
    assert 50 <= max(drafted_ids(pair(vocab=vocab, noise=0.1, rows=90))) < VOCAB_SIZE


def test_a_vocabulary_without_rows_scores_minus_infinity_where_the_head_has_none(caplog):
    with caplog.at_level(logging.INFO, "nanospec"):
        drafter = CausalLMDrafter(tiny_language_model("llama", 1, vocab_size=50), VOCAB_SIZE)
    assert caplog.messages == ["the draft scores 50 of 61 ids: the others are never drafted"]
    states, ids = torch.randn(1, 2, 24, dtype=torch.float64), torch.tensor([[3, 60, 49, 50, 3]])
    logits = drafter.logits(states, DraftVocab(ids, torch.tensor([4], dtype=torch.int32), None))
    scored = drafter.body.head(states)
    torch.testing.assert_close(logits[:, :, [0, 2]], scored[:, :, [3, 49]], atol=ATOL, rtol=0)
    assert logits[:, :, [1, 3, 4]].eq(-torch.inf).all()


def test_ids_that_the_draft_does_not_score_are_counted():
    decoder = pair(vocab="static:60", rows=50)
    num_left_out = int((FREQUENT[:60] >= 50).sum())
    assert decoder.vocab.name == f"static-{60 - num_left_out}"
    assert decoder.generate([1, 2, 3], max_new_tokens=5).stats.unsayable_ids == num_left_out
    stats = pair(vocab="in-context", rows=50).generate([1, 55, 60], max_new_tokens=5).stats
    assert 2 <= stats.unsayable_ids < stats.observed_ids
    assert pair(vocab="in-context", rows=70).generate([1, 2], max_new_tokens=5).stats.observed_ids == 0


def test_the_head_follows_the_model_to_another_dtype():
    drafter = CausalLMDrafter(tiny_language_model("llama", 1), VOCAB_SIZE)
    assert drafter.head is drafter.head
    drafter.float()
    assert drafter.head.weight.dtype == drafter.dtype == torch.float32


def test_the_vocabulary_holds_rows_of_the_drafts_head():
    decoder = pair(vocab="in-context", noise=1.0)
    decoder.generate([1, 2, 3], max_new_tokens=5)
    chosen = decoder.vocab.select(8)
    assert torch.equal(chosen.rows, decoder.drafter.body.head_weight[chosen.draft_ids])


def test_a_model_that_could_not_be_a_target_is_refused_as_a_draft():
    sizes = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(num_attention_heads=2, **sizes))
    with pytest.raises(NotImplementedError, match="draft must be a model that could be a target itself: target model"):
        CausalLMDrafter(model, 9)


def test_a_compiled_decoder_refuses_it_by_name():
    target = Target(tiny_language_model("llama", 3))
    with pytest.raises(NotImplementedError, match="needs an EagleDrafter as drafter, got CausalLMDrafter"):
        SpeculativeDecoder(target, CausalLMDrafter(target.model, VOCAB_SIZE), "full", compile="eager")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: captures and replays CUDA graphs")
def test_captured_steps_give_the_tokens_of_plain_ones():
    model = tiny_language_model("llama", 3).float().cuda()
    drafter = CausalLMDrafter(noisy_copy(model, 0.1).float().cuda(), VOCAB_SIZE)
    for vocab in ("full", "in-context", "static:7"):
        options = {"capacity": 30, "frequent_ids": FREQUENT}
        captured = SpeculativeDecoder(Target(model), drafter, vocab, SHAPES[2], **options)
        plain = SpeculativeDecoder(Target(model), drafter, vocab, SHAPES[2], cuda_graph=False, **options)
        for prompt in ([1, 2, 3], [7] * 20, [1, 2, 3]):
            expected = plain.generate(prompt, max_new_tokens=60).token_ids
            assert captured.generate(prompt, max_new_tokens=60).token_ids == expected
