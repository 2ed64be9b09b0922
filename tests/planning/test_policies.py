"""Policies of a plan: their rows, their accept lengths, and ratios between them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings

from nanospec.planning.devices import H200
from nanospec.planning.policies import IN_CONTEXT_ROWS, AcceptLength, parse_policy, plan_policies
from nanospec.planning.step_cost import DraftRows
from nanospec.tree_shape import TreeShape
from tests.planning.pairs import pair, pairs


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("full", DraftRows(50_000)),
        ("static:32768", DraftRows(32_768)),
        ("static:99999", DraftRows(50_000)),
        ("in-context", DraftRows(IN_CONTEXT_ROWS, follows=True)),
        ("in-context:3072", DraftRows(3072, follows=True)),
        ("hybrid:1024", DraftRows(1408, follows=True)),
    ],
)
def test_a_policy_says_its_rows(text, rows):
    assert parse_policy(text, 50_000).rows == rows


@pytest.mark.parametrize(
    "text", ["", "all", "full:3", "static", "hybrid", "static:0", "hybrid:-1", "in-context:x", "static:"]
)
def test_what_is_no_policy_is_refused(text):
    with pytest.raises(ValueError, match="vocab"):
        parse_policy(text, 100)


@settings(max_examples=30, deadline=None)
@given(pairs())
def test_a_vocabulary_of_all_ids_is_as_fast_as_full_at_equal_accept_length(any_pair):
    num_ids = any_pair.draft.body.num_ids
    policies = [parse_policy(name, num_ids) for name in ("full", f"static:{num_ids}")]
    full, static = plan_policies(
        any_pair, policies, dict.fromkeys(("full", f"static:{num_ids}"), AcceptLength(2.0, "x"))
    )
    assert static.step_ms == full.step_ms
    assert (static.speedup_vs_full, static.draft_vs_full, static.floor_speedup) == (1.0, 1.0, full.floor_speedup)


def test_ratios_are_those_of_the_times():
    one = pair(H200, num_ids=128_000)
    full, small = plan_policies(one, [parse_policy(name, 128_000) for name in ("full", "in-context:100")])
    rate = small.accept_length / small.step_ms
    assert small.speedup_vs_full == pytest.approx(rate / (full.accept_length / full.step_ms))
    assert small.tokens_per_second == pytest.approx(1e3 * rate)
    assert small.draft_vs_full == pytest.approx(small.draft_ms / full.draft_ms)
    assert small.step_ms == pytest.approx(small.draft_ms + small.verify_ms + small.vocabulary_ms, rel=0.5)
    assert 1 < small.level_vs_headless < full.level_vs_headless


def test_published_accept_lengths_are_named_and_bounded_by_the_tree():
    shallow = pair(H200, tree=TreeShape(2, 4, 8), accept_length=1.0)
    (plan,) = plan_policies(shallow, [parse_policy("full", 1000)])
    assert (plan.accept_length, plan.accept_length_source) == (3, "the most that a tree of depth 2 yields")
    (plan,) = plan_policies(pair(H200), [parse_policy("full", 1000)])
    assert plan.accept_length_source.startswith("published: FR-Spec")


def test_an_accept_length_that_the_tree_cannot_yield_is_refused():
    with pytest.raises(ValueError, match=re.escape("accept_length must be between 1 and 6")):
        plan_policies(pair(), [parse_policy("full", 1000)], {"full": AcceptLength(9.0, "given")})
