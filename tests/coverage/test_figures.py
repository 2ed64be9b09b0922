from __future__ import annotations

import numpy as np
import pytest

from nanospec.coverage.figures import build_rows, ratio_interval

POLICIES = [{"vocab": "full"}, {"vocab": "small"}]


def measurement(accept, rows, covered, top1=(1, 1), held=4, draft_ms=None, learn_ms=None):
    return {
        "accept": accept, "rows": rows, "covered": list(covered), "held_top1": list(top1), "held_nodes": held,
        "num_nodes": 4, "draft_ms": draft_ms, "learn_ms": learn_ms,
    }  # fmt: skip


def record(document, task, *contexts):
    return {
        "document": document,
        "task": task,
        "contexts": [
            {"position": position, "verify_ms": verify_ms, "policies": policies}
            for position, verify_ms, policies in contexts
        ],
    }


RECORDS = [
    record(
        0, "chat",
        (0, 6.0, [measurement(3, 61, (1, 1), (1, 1), 4, 3.0, 0.0), measurement(2, 10, (1, 0), (1, 0), 1, 2.0, 2.0)]),
        (31, None, [measurement(1, 61, (1, 1), (1,)), measurement(1, 20, (0, 0), (0,), 0)]),
    ),
    record(1, "code", (32, None, [measurement(2, 61, (1, 1)), measurement(3, 30, (1, 1), (1, 1), 3)])),
    {"document": 2, "task": "code", "contexts": None},
]  # fmt: skip


def test_rows_are_the_means_and_ratios_of_the_records():
    full, small = build_rows(RECORDS, POLICIES)
    assert (full["vocab"], full["accept_vs_full"], full["accept_vs_full_95"], full["coverage"]) == (
        "full",
        1,
        [1, 1],
        1,
    )
    assert (small["contexts"], small["accept_length"], small["mean_active_vocab"]) == (3, 2, 20)
    assert small["accept_vs_full"] == 6 / 6
    assert small["coverage"] == 3 / 6
    assert small["recall_top1"] == 3 / 5
    assert small["recall_tree"] == 4 / 12
    assert small["upkeep_share"] == 2 / 10
    assert small["upkeep"]["machine_dependent"] is True


def test_figures_are_split_by_task_depth_and_position():
    small = build_rows(RECORDS, POLICIES)[1]
    assert {task: figures["accept_vs_full"] for task, figures in small["per_task"].items()} == {
        "chat": 3 / 4,
        "code": 1.5,
    }
    assert small["per_depth"] == [
        {"depth": 1, "coverage": 2 / 3, "recall_top1": 2 / 3, "accepted": 2 / 3},
        {"depth": 2, "coverage": 1 / 3, "recall_top1": 1 / 2, "accepted": 1 / 3},
    ]
    assert [(part["from_token"], part["contexts"]) for part in small["per_position"]] == [(0, 2), (32, 1)]


def test_the_interval_resamples_documents_with_both_sides():
    baseline = np.array([2.0, 2.0, 4.0, 4.0])
    assert ratio_interval(1.5 * baseline, baseline, np.arange(4)) == (1.5, 1.5)
    own = np.array([1.0, 3.0, 3.0, 5.0])  # within each document of two contexts the differences cancel
    assert ratio_interval(own, baseline, np.array([0, 0, 1, 1])) == (1.0, 1.0)
    low, high = ratio_interval(own, baseline, np.arange(4))
    assert low < 1.0 < high


def test_no_context_at_all_is_refused():
    with pytest.raises(ValueError, match="prompts must hold one that the target has room for, got none in 1 records"):
        build_rows(RECORDS[2:], POLICIES)
