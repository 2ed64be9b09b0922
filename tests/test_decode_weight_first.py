"""Exactness where products read the weight first and the target's best ids are searched column by column."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec import SpeculativeDecoder, TreeShape
from nanospec.ops import weight_first
from nanospec.ops.weight_first import columns, use_weight_first
from tests.tiny_pair import tiny_drafter, tiny_target

NUM_IDS = 700  # searched by blocks of columns
# Whatever the machine and the sizes, and in float64, in which only the order of sums differs.
EVERYWHERE = patch.multiple(
    weight_first,
    reads_weight_first=lambda x: x.device.type == "cpu",
    LEAST_WEIGHTS=1,
    INPUTS_PER_TOKEN=1,
    COLUMN_TOKENS=4,
    MOST_EMPTY=3,
)
prompts = st.lists(st.integers(0, NUM_IDS - 1), min_size=1, max_size=90)


def loaded_target(seed: int):
    """As if a checkpoint had been loaded."""
    target = tiny_target(seed, NUM_IDS)
    assert use_weight_first(target.model) == 15
    return target


@pytest.fixture(scope="module")
def targets() -> list:
    return [loaded_target(seed) for seed in range(3)]


@settings(max_examples=30)
@given(
    pair=st.tuples(st.integers(0, 2), st.integers(0, 5)),
    policy=st.sampled_from(("full", "in-context", "static:60", "hybrid:40+prior")),
    num_nodes=st.integers(2, 20),
    prompt=prompts,
    sampling=st.sampled_from(({}, {"temperature": 0.8, "seed": 3}, {"repetition_penalty": 1.3})),
)
def test_output_is_the_autoregressive_output(targets, pair, policy, num_nodes, prompt, sampling) -> None:
    target = targets[pair[0]]
    decoder = SpeculativeDecoder(
        target,
        tiny_drafter(target, pair[1], std=0.05),
        policy,
        TreeShape(4, 3, num_nodes),
        num_top=3,
        capacity=100,
        frequent_ids=torch.randperm(NUM_IDS, generator=torch.Generator().manual_seed(0)),
    )
    plain = decoder.generate_autoregressive(prompt, max_new_tokens=24, **sampling)
    with EVERYWHERE:
        result = decoder.generate(prompt, max_new_tokens=24, **sampling)
        assert decoder.generate_autoregressive(prompt, max_new_tokens=24, **sampling).token_ids == plain.token_ids
    assert result.token_ids == plain.token_ids


@pytest.mark.parametrize("num_positions", [1, 3, 8, 70])
def test_the_best_ids_of_a_prompt_are_those_of_the_plain_order(num_positions: int) -> None:
    target, input_ids = loaded_target(0), torch.arange(num_positions)[None] % NUM_IDS
    target.reset(num_positions)
    expected = target.prefill(input_ids, num_top=4)
    with EVERYWHERE:
        target.reset(num_positions)
        found = target.prefill(input_ids, num_top=4)
    assert torch.equal(found.top_ids, expected.top_ids)


def test_columns_are_the_layer_and_rows_behind_it() -> None:
    head, hidden = loaded_target(0).model.lm_head, torch.randn(6, 24, dtype=torch.float64)
    with EVERYWHERE:
        by_column = columns(hidden, head)
        assert by_column is not None
        assert by_column.shape == (8, NUM_IDS)
        assert by_column.stride() == (1, 8)
        # float64 sums of 24 products of order 1: only the order of summation differs.
        torch.testing.assert_close(by_column[:6], head(hidden), rtol=0, atol=1e-12)


def test_a_head_that_does_more_than_multiply_is_called() -> None:
    hidden = torch.randn(8, 24, dtype=torch.float64)
    with EVERYWHERE:
        assert columns(hidden, tiny_target(0, NUM_IDS).model.lm_head) is None  # a module that was handed over
        hooked = loaded_target(0).model.lm_head
        hooked.register_forward_hook(lambda module, inputs, output: 2 * output)
        assert columns(hidden, hooked) is None
        with patch.object(weight_first, "MOST_EMPTY", 0):
            assert columns(hidden[:6], loaded_target(0).model.lm_head) is None  # two of eight would be empty
    assert columns(hidden, loaded_target(0).model.lm_head) is None  # float64 without the pretence
