"""What a row costs by the bytes that are read."""

from __future__ import annotations

import pytest

from nanospec import TreeShape
from nanospec.drafters.prompt_lookup import PromptLookupDrafter
from nanospec.row_cost import row_cost
from tests.tiny_pair import tiny_drafter, tiny_eagle3_drafter, tiny_eagle3_target, tiny_target

HIDDEN, INTERMEDIATE, VOCAB = 24, 40, 61
LAYER = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * 12 + 3 * HIDDEN * INTERMEDIATE  # attention with half as many kv heads, MLP


def test_a_row_per_level_over_target_and_levels_without_embeddings():
    target = tiny_target(1)
    drafter = tiny_drafter(target, 2)
    target_body = 2 * (LAYER + 2 * HIDDEN) + HIDDEN + VOCAB * HIDDEN  # norms, head
    level = LAYER + HIDDEN + 2 * HIDDEN * HIDDEN + HIDDEN  # one norm, fc and its bias
    expected = 5 * HIDDEN / (target_body + 6 * level)
    assert row_cost(target, drafter, TreeShape(5, 4, 16)) == pytest.approx(expected)


def test_heads_of_a_drafters_own_are_not_read_whole():
    target = tiny_eagle3_target(1)
    few, many = (row_cost(target, tiny_eagle3_drafter(target, 2, rows), TreeShape(3, 3, 8)) for rows in (30, VOCAB))
    assert few == many


def test_a_drafter_without_weights_leaves_the_target():
    target = tiny_target(1)
    assert row_cost(target, PromptLookupDrafter(target.device), TreeShape(3, 3, 8)) > 0
