"""Calls of `generate` that cannot come out as transformers' own are refused by the argument's name."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    StoppingCriteriaList,
    T5Config,
    T5ForConditionalGeneration,
    TemperatureLogitsWarper,
    TextStreamer,
)

import nanospec
from tests.byte_tokenizer import byte_tokenizer
from tests.integrations.transformers.generate_calls import EOS, PAD, cached_model, cached_speculative, prompt_of
from tests.integrations.transformers.test_speculative import AfterRepeat
from tests.tiny_pair import tiny_model

PROMPT = prompt_of(3, 1, 4, 1, 5)
ROWS = torch.cat((PROMPT, PROMPT))
NAME = "llama-tied"


def call(ids=PROMPT, **settings):
    settings = {"max_new_tokens": 4, "pad_token_id": PAD, **settings}
    return cached_model(NAME).generate(ids, custom_generate=cached_speculative(NAME), **settings)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_beams": 3}, NotImplementedError, r"generate must be greedy or sample, got beam_search \(num_beams=3\)"),
        ({"num_beams": 2, "do_sample": True}, NotImplementedError, "got beam_sample"),
        ({"penalty_alpha": 0.6, "top_k": 4}, NotImplementedError, r"got contrastive_search \(penalty_alpha=0.6\)"),
        ({"prompt_lookup_num_tokens": 3}, NotImplementedError, r"assisted_generation \(prompt_lookup_num_tokens=3\)"),
        ({"use_mtp": True}, NotImplementedError, r"got assisted_generation \(use_mtp=True\)"),
        ({"dola_layers": "high"}, NotImplementedError, r"got dola_generation \(dola_layers=high\)"),
        ({"assistant_model": tiny_model(1)}, ValueError, "assistant_model must be None here, got a model"),
        ({"cache_implementation": "static"}, NotImplementedError, "cache_implementation must be None .*, got 'static'"),
        ({"past_key_values": DynamicCache()}, NotImplementedError, "past_key_values must be None, got a DynamicCache"),
        ({"remove_invalid_values": True}, NotImplementedError, "remove_invalid_values must be False, got True"),
        (
            {"output_hidden_states": True},
            NotImplementedError,
            "output_hidden_states must be False, got True",
        ),
        (
            {"output_attentions": True},
            NotImplementedError,
            "output_attentions must be False, got True",
        ),
        ({"position_ids": torch.tensor([[5, 6, 7, 8, 9]])}, NotImplementedError, "position_ids must count the tokens"),
        (
            {"attention_mask": torch.tensor([[1, 0, 1, 1, 1]])},
            NotImplementedError,
            r"left alone, got \[1, 0, 1, 1, 1\]",
        ),
        (
            {"attention_mask": torch.tensor([[1, 1, 1, 1, 0]])},
            NotImplementedError,
            r"left alone, got \[1, 1, 1, 1, 0\]",
        ),
        ({"max_new_tokens": 200}, ValueError, "max_length must leave every row within the model's 128 positions"),
        ({"ids": PROMPT + 50}, ValueError, r"input_ids must lie in \[0, 50\), got 55"),
        (
            {"ids": ROWS, "return_dict_in_generate": True, "output_scores": True},
            NotImplementedError,
            "output_scores and output_logits must be False in a batch, got 2 rows",
        ),
        (
            {"ids": ROWS, "prefix_allowed_tokens_fn": lambda row, ids: [1]},
            NotImplementedError,
            "logits_processor must serve a row alone in a batch, got 2 rows and PrefixConstrainedLogitsProcessor",
        ),
        ({"ids": ROWS, "encoder_repetition_penalty": 1.5}, NotImplementedError, "EncoderRepetitionPenalty"),
        ({"ids": ROWS, "guidance_scale": 1.5}, NotImplementedError, "UnbatchedClassifierFreeGuidance"),
        (
            {"ids": ROWS, "stopping_criteria": StoppingCriteriaList([AfterRepeat()])},
            NotImplementedError,
            "eos_token_id must be set where other criteria end rows in a batch, got 2 rows and AfterRepeat",
        ),
        ({"ids": ROWS, "streamer": TextStreamer(byte_tokenizer())}, ValueError, "only supports batch size 1"),
    ],
)
def test_what_cannot_be_served_names_the_argument(settings, error, message):
    with pytest.raises(error, match=message):
        call(**settings)


def test_embeddings_as_inputs_are_refused():
    embeddings = cached_model(NAME).get_input_embeddings()(PROMPT)
    with pytest.raises(
        NotImplementedError, match="must be input_ids and attention_mask alone, got inputs_embeds besides"
    ):
        cached_model(NAME).generate(
            inputs_embeds=embeddings, custom_generate=cached_speculative(NAME), max_new_tokens=2, pad_token_id=PAD
        )


def test_a_streamer_of_its_own_kind_in_a_batch_is_refused():
    class Collects:
        def put(self, value):
            pass

        def end(self):
            pass

    with pytest.raises(ValueError, match="streamer must be None in a batch, got 2 rows"):
        call(ROWS, streamer=Collects())


def test_a_model_in_training_mode_is_refused_and_stays_in_it():
    model = tiny_model(3).train()
    with pytest.raises(ValueError, match="model must be in evaluation mode"):
        model.generate(PROMPT, custom_generate=nanospec.generate_with("prompt-lookup"), max_new_tokens=2)
    assert model.training


def test_encoder_decoder_models_are_refused():
    config = T5Config(
        vocab_size=50, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0, pad_token_id=0
    )
    model = T5ForConditionalGeneration(config).eval()
    with pytest.raises(NotImplementedError, match="encoder_outputs"):
        model.generate(PROMPT, custom_generate=nanospec.generate_with("prompt-lookup"), max_new_tokens=2)


def test_a_draft_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="draft must be a path, a hub id, a model or a Drafter, got int"):
        nanospec.generate_with(3)


def test_what_serves_rows_alone_is_taken_in_a_batch():
    rows = call(
        ROWS,
        logits_processor=LogitsProcessorList([TemperatureLogitsWarper(0.5)]),
        eos_token_id=EOS,
        stopping_criteria=StoppingCriteriaList([AfterRepeat()]),
    )
    assert rows.shape[0] == 2
