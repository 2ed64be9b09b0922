"""The cost model: what it may depend on, in which direction, and one step by hand."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec.planning.devices import H200
from nanospec.planning.model_sizes import DraftSizes, ModelSizes, Product
from nanospec.planning.step_cost import (
    DraftRows,
    Pair,
    Setting,
    draft_seconds,
    floor_seconds,
    head_seconds,
    level_seconds,
    plain_seconds,
    step_cost,
    verify_seconds,
)
from nanospec.tree_shape import TreeShape
from tests.planning.pairs import UNIT, draft, model, pair, pairs

EXAMPLES = settings(max_examples=40, deadline=None)
ROUNDING = 1e-9  # sums of the same numbers in another order


@EXAMPLES
@given(pairs(), st.integers(1, 50_000), st.integers(1, 50_000), st.booleans())
def test_more_rows_of_the_head_never_cost_less_within_one_way_to_search(any_pair, some, more, follows):
    few, many = sorted((some, some + more))
    if (few < 16_384) != (many < 16_384):  # two searches with rates of their own
        few = many
    assert draft_seconds(any_pair, DraftRows(few, follows)) <= draft_seconds(any_pair, DraftRows(many, follows))
    assert level_seconds(any_pair, DraftRows(0)) <= level_seconds(any_pair, DraftRows(few, follows))


@EXAMPLES
@given(pairs(), st.integers(1, 30_000), st.integers(1, 2_000_000))
def test_draft_over_rows_of_the_context_does_not_depend_on_the_vocabulary(any_pair, num_rows, num_ids):
    rows = DraftRows(num_rows, follows=True)
    other = any_pair._replace(draft=any_pair.draft.with_num_ids(num_ids))
    for nodes in (1, any_pair.setting.tree.branching):
        assert head_seconds(other, rows, nodes) == head_seconds(any_pair, rows, nodes)
    assert level_seconds(other, rows) == level_seconds(any_pair, rows)


@EXAMPLES
@given(pairs())
def test_all_rows_cost_what_the_full_vocabulary_costs(any_pair):
    single = any_pair._replace(setting=replace(any_pair.setting, batch_size=1))
    num_ids = single.draft.body.num_ids
    full, following = (draft_seconds(single, DraftRows(num_ids, follows)) for follows in (False, True))
    assert following == pytest.approx(full, rel=ROUNDING)


@EXAMPLES
@given(pairs(), st.integers(1, 30), st.integers(1, 10_000))
def test_more_nodes_sequences_and_context_never_cost_less(any_pair, more, tokens):
    setting, rows = any_pair.setting, DraftRows(500)
    shape = setting.tree
    larger = [
        replace(setting, context_length=setting.context_length + tokens),
        replace(setting, batch_size=setting.batch_size + more),
        replace(setting, tree=shape._replace(num_nodes=min(shape.num_nodes + more, 1 + shape.num_candidates))),
        replace(setting, tree=shape._replace(depth=shape.depth + 1)),
    ]
    for grown in larger:
        assert step_cost(any_pair._replace(setting=grown), rows).step >= step_cost(any_pair, rows).step


@EXAMPLES
@given(pairs(), st.integers(0, 2_000_000))
def test_no_step_is_expected_below_its_floor_on_a_device_of_one_bandwidth(any_pair, num_rows):
    on_gpu = any_pair._replace(device=H200)
    rows = DraftRows(num_rows)
    assert step_cost(on_gpu, rows).step >= floor_seconds(on_gpu, rows)


def test_a_step_by_hand():
    """One byte per second, nothing else costs: hidden 4, one product of 8 x 4, 10 ids, tree of depth 2."""
    body = ModelSizes(4, 1, 0, 0, 0, 10, (Product(8, 4),))
    free = replace(UNIT, narrow_logit_s=0.0, wide_logit_s=0.0, best_logit_s=0.0, activation_s=0.0)
    one = Pair(free, body, DraftSizes("EAGLE-1/2", body), Setting(TreeShape(2, 2, 4), accept_length=2))
    weights, head, five_rows = 2 * 32, 2 * 40, 2 * 20
    assert verify_seconds(one) == plain_seconds(one) == weights + head
    assert level_seconds(one, DraftRows(0)) == weights
    assert level_seconds(one, DraftRows(5)) == weights + five_rows
    assert draft_seconds(one, DraftRows(10)) == 2 * (weights + head)  # taken in, one level; two times the head
    assert floor_seconds(one, DraftRows(5)) == weights + head + 2 * (weights + five_rows)
    copied = 2 * 4 * 17 * 4 * 2  # 4 nodes with 16 suggestions each, rows of 4 numbers, read and written
    assert step_cost(one, DraftRows(5, follows=True)).vocabulary == copied
    assert step_cost(one, DraftRows(5)).vocabulary == 0


def test_parallel_heads_run_no_body_between_levels():
    medusa = DraftSizes("Medusa", ModelSizes(64, 0, 0, 0, 0, 1000, ()), (Product(64, 64, 3),), is_parallel=True)
    one = pair(UNIT)._replace(draft=medusa)
    assert level_seconds(one, DraftRows(0)) == 0
    assert draft_seconds(one, DraftRows(0)) == 2 * 3 * 64 * 64


def test_experts_are_read_as_tokens_need_them():
    experts = Product(10, 10, num_experts=8, experts_per_token=2)
    assert experts.num_weights(1) == pytest.approx(2 * 100)
    assert experts.num_weights(2) == pytest.approx(8 * 100 * (1 - 0.75**2))
    assert experts.num_weights(1000) == pytest.approx(8 * 100)
    assert experts.rows_per_weight(1000) == pytest.approx(250)
    assert (experts.num_met(1), experts.num_met(1000)) == pytest.approx((2, 8))


def test_devices_share_matrices_and_pay_for_telling_each_other():
    alone = pair(H200, num_ids=1_000_000)
    eight = alone._replace(setting=replace(alone.setting, num_shards=8))
    assert verify_seconds(eight) < verify_seconds(alone)
    assert draft_seconds(eight, DraftRows(1_000_000)) < draft_seconds(alone, DraftRows(1_000_000))
    assert head_seconds(eight, DraftRows(8), 8) > head_seconds(alone, DraftRows(8), 8)
    assert floor_seconds(eight, DraftRows(100)) == pytest.approx(floor_seconds(alone, DraftRows(100)) / 8)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"context_length": 0}, "context_length must be at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, got -1"),
        ({"num_shards": 0}, "num_shards must be at least 1, got 0"),
        ({"accept_length": 7.5}, "accept_length must be between 1 and 6"),
        ({"accept_length": float("nan")}, "accept_length must be between 1 and 6"),
        ({"num_shards": 2}, "num_shards must be 1 on cpu, which stands alone, got 2"),
        ({"tree": TreeShape(0, 1, 2)}, "tree depth must be at least 1"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(setting, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        step_cost(pair(**setting), DraftRows(10))


def test_a_tree_deeper_than_the_draft_is_refused():
    shallow = Pair(H200, model(), replace(draft(), max_depth=3), Setting(TreeShape(4, 2, 4)))
    with pytest.raises(ValueError, match="tree depth must be at most 3 for this draft, got 4"):
        step_cost(shallow, DraftRows(10))
