"""Memory-bound speed-up: a table by hand, and what counts as read."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from nanospec.costs import memory_bound_speedup, params_per_pass


@pytest.mark.parametrize(
    ("accept_length", "num_passes", "draft", "target", "expected"),
    [
        (1.0, 5, 1, 1, 1 / 6),  # a draft as large as the target that is never right
        (6.0, 5, 1, 1, 1.0),  # and one that is always right: nothing is gained
        (3.5, 5, 2, 100, 3.5 / 1.1),
        (4.0, 8, 125, 1000, 2.0),
    ],
)
def test_it_is_the_accept_length_over_what_a_step_reads(accept_length, num_passes, draft, target, expected):
    assert memory_bound_speedup(accept_length, num_passes, draft, target) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.9, 5, 1, 1), "accept_length must be at least 1, the bonus token, got 0.9"),
        ((float("nan"), 5, 1, 1), "accept_length must be at least 1"),
        ((2.0, 0, 1, 1), "num_passes must be at least 1, got 0"),
        ((2.0, 5, 0, 1), "draft_params must be at least 1, got 0"),
        ((2.0, 5, 1, 0), "target_params must be at least 1, got 0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        memory_bound_speedup(*arguments)


@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_counts_only_as_head(tied):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=37, tie_word_embeddings=tied, **sizes))
    body = 4 * 8 * 8 + 3 * 8 * 8 + 3 * 8
    assert params_per_pass(model) == body + 37 * 8
