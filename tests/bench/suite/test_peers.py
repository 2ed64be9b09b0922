from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bench.suite.contenders import engine_row
from bench.suite.peers import as_published, peer, without_end
from nanospec.decode import SpeculativeDecoder
from nanospec.ops.weight_first import WeightFirstLinear, use_weight_first
from nanospec.target import Target
from tests.tiny_language_models import noisy_copy, tiny_language_model
from tests.tiny_pair import VOCAB_SIZE, tiny_drafter, tiny_model

MODEL = tiny_language_model("llama", 3)
ASSISTANT = without_end(noisy_copy(MODEL, 0.3))
PAIR = SpeculativeDecoder(Target(MODEL), tiny_drafter(Target(MODEL), 5), "in-context", (3, 3, 8))
SETTINGS = {"greedy": {}, "assisted": {"assistant_model": ASSISTANT}, "lookup": {"prompt_lookup_num_tokens": 10}}


@pytest.fixture(autouse=True)
def ends_at_some_id():
    """The model's own config would end outputs, half of the ids at once."""
    MODEL.generation_config.eos_token_id = list(range(0, VOCAB_SIZE, 2))
    yield
    assert MODEL.generation_config.eos_token_id == list(range(0, VOCAB_SIZE, 2))


@settings(max_examples=20)
@given(
    prompt=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=2, max_size=20),
    max_new_tokens=st.integers(2, 40),
    kind=st.sampled_from(sorted(SETTINGS)),
)
def test_peers_say_what_plain_decoding_says_to_the_last_token(prompt, max_new_tokens, kind):
    input_ids = torch.tensor([prompt])
    found = peer(MODEL, **SETTINGS[kind])(input_ids, max_new_tokens)
    plain = engine_row(PAIR.generate_autoregressive)(input_ids, max_new_tokens)
    assert found.token_ids == plain.token_ids
    assert len(found.token_ids) == max_new_tokens
    assert found.first_tokens + found.step_tokens == max_new_tokens
    assert 0 < found.ttft <= found.seconds
    if kind == "greedy":
        assert (found.first_tokens, found.steps) == (1, max_new_tokens - 1)


def test_an_assistant_that_is_right_saves_target_passes():
    found = peer(MODEL, assistant_model=without_end(MODEL))(torch.tensor([[1, 2, 3]]), 40)
    assert found.steps < 30


def test_rows_of_our_engine_count_tokens_rows_and_stages():
    input_ids = torch.tensor([[1, 2, 3]])
    row = engine_row(PAIR.generate)(input_ids, 20)
    plain = engine_row(PAIR.generate_autoregressive)(input_ids, 20)
    assert row.token_ids == plain.token_ids
    assert (plain.steps, plain.step_tokens, plain.active_rows) == (19, 19, None)
    assert row.first_tokens == 1
    assert row.step_tokens >= 19
    assert row.steps <= row.active_rows <= row.steps * VOCAB_SIZE
    assert sum(row.stages.values()) == pytest.approx(row.decode_seconds)
    assert min(row.stages.values()) >= 0


def test_peers_run_the_same_weights_in_layers_of_transformers():
    model = tiny_model(0)
    assert use_weight_first(model) > 0
    twin = as_published(model)
    assert {type(layer) for layer in twin.modules() if isinstance(layer, nn.Linear)} == {nn.Linear}
    assert {type(layer) for layer in model.modules() if isinstance(layer, nn.Linear)} == {WeightFirstLinear}
    assert all(own is other for own, other in zip(model.parameters(), twin.parameters(), strict=True))
