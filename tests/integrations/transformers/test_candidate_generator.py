"""Assisted generation with a gathered assistant: the output is plain `generate`'s, greedy and sampled."""

from __future__ import annotations

import functools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel, StoppingCriteriaList, TextStreamer

import nanospec
from nanospec.integrations.transformers import GatheredCandidateGenerator
from tests.byte_tokenizer import byte_tokenizer
from tests.integrations.transformers.generate_calls import EOS, FIVE, PAD, both, cached_model, prompt_of
from tests.integrations.transformers.test_speculative import AfterRepeat
from tests.tiny_families import VOCAB_SIZE, family_model
from tests.tiny_language_models import noisy_copy, tiny_language_model
from tests.tiny_pair import tiny_model

NEW = 16
PROMPT = prompt_of(3, 1, 4, 1, 5, 9)
# Nine outcomes: a true distribution stays below this in 999 of 1000 runs, and the seed is fixed.
CHI_SQUARE_8_AT_999 = 26.1


@settings(max_examples=20)
@given(
    name=st.sampled_from(FIVE),
    prompt=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=8),
    vocab=st.sampled_from(("in-context", "full", "in-context+prior")),
    num_candidates=st.integers(1, 6),
    penalty=st.sampled_from((1.0, 1.3)),
    eos=st.sampled_from((None, EOS, [EOS, 4])),
)
def test_greedy_tokens_are_those_of_plain_generate(name, prompt, vocab, num_candidates, penalty, eos):
    custom = nanospec.assist_with(assistant_of(name), vocab, num_candidates, capacity=30, num_top=3)
    ids = prompt_of(*prompt)
    plain, ours = both(
        cached_model(name), custom, ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, eos_token_id=eos,
        pad_token_id=PAD, repetition_penalty=penalty,
    )  # fmt: skip
    assert ours.tolist() == plain.tolist()


@functools.cache
def assistant_of(name: str) -> PreTrainedModel:
    """The family's model with noise: right for some tokens, wrong for others."""
    assistant = family_model(name)
    noise = family_model(name, seed=7)
    with torch.no_grad():
        for own, other in zip(assistant.parameters(), noise.parameters(), strict=True):
            own.lerp_(other, 0.1)
    return assistant


def test_sampled_tokens_have_the_targets_distribution():
    model = tiny_language_model("llama", 3, vocab_size=3)
    custom = nanospec.assist_with(noisy_copy(model, 0.3, vocab_size=3), "full", num_candidates=2)
    prompt, num_draws, length = prompt_of(0, 1, 2), 200, 2
    expected = {}
    for first in range(3):
        for second in range(3):
            logits = model(prompt_of(0, 1, 2, first)).logits[0].detach()
            log_prob = logits.div(8).log_softmax(-1)
            expected[first, second] = float((log_prob[2, first] + log_prob[3, second]).exp())
    torch.manual_seed(0)
    counts = Counter(
        tuple(
            model.generate(
                prompt, custom_generate=custom, do_sample=True, temperature=8.0, top_k=0, max_new_tokens=length
            )[0, 3:].tolist()
        )
        for _ in range(num_draws)
    )
    chi_square = sum((counts[pair] - num_draws * p) ** 2 / (num_draws * p) for pair, p in expected.items())
    assert chi_square < CHI_SQUARE_8_AT_999


def test_right_candidates_are_taken_several_at_a_time():
    model, passes = cached_model("llama-tied"), []
    handle = model.register_forward_hook(lambda *_: passes.append(1))
    custom = nanospec.assist_with(tiny_copy(model), "full", num_candidates=4)
    model.generate(PROMPT, custom_generate=custom, max_new_tokens=NEW)
    handle.remove()
    assert len(passes) <= NEW // 2


def tiny_copy(model):
    """The same weights in a model of its own, so that its passes are not counted."""
    copy = family_model("llama-tied")
    copy.load_state_dict(model.state_dict())
    return copy


def test_a_narrow_assistant_never_drafts_what_it_has_no_row_for():
    model = tiny_language_model("llama", 3)
    narrow = noisy_copy(model, 0.02, vocab_size=40)
    for vocab in ("full", "in-context"):
        plain, ours = both(model, nanospec.assist_with(narrow, vocab), PROMPT, max_new_tokens=NEW)
        assert ours.tolist() == plain.tolist()


def test_candidates_stay_in_the_vocabulary_and_learn_from_the_target():
    model = tiny_language_model("llama", 3)
    generator = GatheredCandidateGenerator(model, 61, num_candidates=3, max_length=20, num_top=1, capacity=61)
    candidates, logits = generator.get_candidates(PROMPT)
    assert logits is None
    assert candidates[:, :6].tolist() == PROMPT.tolist()
    assert set(candidates[0, 6:].tolist()) <= set(PROMPT[0].tolist())
    scores = torch.zeros(1, candidates.shape[1] - 5, 61)
    scores[..., 44] = 1.0
    accepted = torch.cat((PROMPT, prompt_of(44)), 1)
    generator.update_candidate_strategy(accepted, scores, 0)
    assert 44 in generator.vocab.select(None).draft_ids[0, : int(generator.vocab.select(None).count)].tolist()
    again, _ = generator.get_candidates(accepted)
    assert again[:, :7].tolist() == accepted.tolist()


def test_a_chain_ends_before_the_end_of_the_text_and_the_length():
    model = tiny_language_model("llama", 3)
    whole, _ = GatheredCandidateGenerator(model, 61, "full", num_candidates=4).get_candidates(PROMPT)
    chain = whole[0, 6:].tolist()
    ended = GatheredCandidateGenerator(model, 61, "full", num_candidates=4, eos_ids=[chain[2]])
    assert ended.get_candidates(PROMPT)[0][0, 6:].tolist() == chain[: chain.index(chain[2])]
    short = GatheredCandidateGenerator(model, 61, "full", num_candidates=4, max_length=9)
    assert short.get_candidates(PROMPT)[0][0, 6:].tolist() == chain[:2]
    full = GatheredCandidateGenerator(model, 61, "full", num_candidates=4, max_length=7)
    assert full.get_candidates(PROMPT)[0].tolist() == PROMPT.tolist()


def test_streamers_and_dictionaries_are_transformers_own(capsys):
    model = tiny_language_model("llama", 3)
    custom = nanospec.assist_with(noisy_copy(model, 0.05))
    settings = {"max_new_tokens": NEW, "return_dict_in_generate": True, "output_scores": True}
    plain, ours = both(model, custom, PROMPT, **settings)
    assert ours.sequences.tolist() == plain.sequences.tolist()
    torch.testing.assert_close(ours.scores, plain.scores)
    tokenizer = byte_tokenizer()
    model.generate(PROMPT, custom_generate=custom, max_new_tokens=4, streamer=TextStreamer(tokenizer))
    assert capsys.readouterr().out.strip("\n") == tokenizer.decode(plain.sequences[0, :10])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_beams": 2}, NotImplementedError, r"generate must be greedy or sample, got beam_search \(num_beams=2\)"),
        (
            {"input_ids": torch.cat((PROMPT, PROMPT))},
            NotImplementedError,
            "one sequence with an assistant, got a batch of 2",
        ),
        (
            {"attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1]])},
            NotImplementedError,
            "attention_mask must be all ones with an assistant",
        ),
        ({"use_cache": False}, NotImplementedError, "use_cache must be True with an assistant"),
        ({"guidance_scale": 1.5}, NotImplementedError, "must not keep state with an assistant, got Unbatched"),
        (
            {"stopping_criteria": StoppingCriteriaList([AfterRepeat()])},
            NotImplementedError,
            "stopping_criteria must be those of length, time and EOS with an assistant, got AfterRepeat",
        ),
    ],
)
def test_what_cannot_be_served_names_the_argument(settings, error, message):
    settings = {"input_ids": PROMPT, "max_new_tokens": 3, "pad_token_id": PAD, **settings}
    with pytest.raises(error, match=message):
        cached_model("gemma2").generate(custom_generate=nanospec.assist_with(cached_model("gemma2")), **settings)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_candidates": 0}, ValueError, "num_candidates must be an int of at least 1, got 0"),
        ({"num_top": True}, ValueError, "num_top must be an int of at least 1, got True"),
        ({"vocab": "fancy"}, ValueError, "vocab must be 'full', .*, got 'fancy'"),
        (
            {"vocab": "hybrid:auto+prior", "frequent_ids": torch.arange(VOCAB_SIZE)},
            NotImplementedError,
            "vocab must not be adaptive or routed for an assistant",
        ),
        ({"assistant": 3}, TypeError, "assistant must be a PreTrainedModel, got int"),
        ({"assistant": tiny_model(1).train()}, ValueError, "assistant must be in evaluation mode"),
    ],
)
def test_bad_options_name_the_argument(options, error, message):
    with pytest.raises(error, match=message):
        GatheredCandidateGenerator(**{"assistant": cached_model("gemma2"), "vocab_size": VOCAB_SIZE, **options})


def test_the_models_are_left_alone():
    model, assistant = tiny_language_model("llama", 3), tiny_language_model("llama", 4)
    before = [(set(vars(part)), part.generation_config.to_dict()) for part in (model, assistant)]
    model.generate(PROMPT, custom_generate=nanospec.assist_with(assistant), max_new_tokens=NEW)
    assert [(set(vars(part)), part.generation_config.to_dict()) for part in (model, assistant)] == before
