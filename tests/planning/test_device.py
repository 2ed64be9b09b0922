"""What a device takes per row and byte: points, rooflines, caches."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec.planning.device import LoopRates, RowCurve
from nanospec.planning.devices import CPU, H200

EXAMPLES = settings(max_examples=40, deadline=None)
points = st.lists(st.tuples(st.integers(1, 500), st.floats(1e-9, 1.0)), min_size=1, unique_by=lambda point: point[0])


def test_a_curve_by_hand():
    curve = RowCurve.of([(2, 1.0), (4, 3.0), (8, 2.0)])
    assert [curve.seconds(rows) for rows in (1, 2, 3, 4, 6, 8, 16)] == [1.0, 1.0, 2.0, 3.0, 3.0, 3.0, 6.0]


def test_a_roofline_is_the_larger_of_reading_and_arithmetic():
    curve = RowCurve.roofline(memory_s=10.0, row_s=2.0)
    assert [curve.seconds(rows) for rows in (1, 5, 6, 50)] == [10.0, 10.0, 12.0, 100.0]
    assert RowCurve.roofline(1.0, 2.0).seconds(3) == 6.0


def test_a_loop_between_two_by_hand():
    """Ten bytes and two outputs: 12 s where little is read, 60 s where much is, half of both in the middle."""
    some, many = LoopRates(1e2, RowCurve(((1, 1.0),)), 1.0), LoopRates(1e6, RowCurve(((1, 4.0),)), 10.0)
    device = replace(CPU, weights=(some, many))
    assert [device.weight_s(10, 2, 1, footprint) for footprint in (1, 1e2, 1e6, 1e9)] == [12, 12, 60, 60]
    assert device.weight_s(10, 2, 1, 1e4) == pytest.approx(36)


@EXAMPLES
@given(points, st.floats(1, 2000), st.floats(1, 2000))
def test_more_rows_never_take_less_time(measured, some, more):
    curve = RowCurve.of(sorted(measured))
    few, many = sorted((some, more))
    assert curve.seconds(few) <= curve.seconds(many) * (1 + 1e-12)  # rounding of an interpolation


@EXAMPLES
@given(st.sampled_from((CPU, H200)), st.floats(1, 1e12), st.floats(1, 1e12), st.integers(1, 200))
def test_a_loop_over_more_bytes_is_never_faster(device, some, more, num_rows):
    few, many = sorted((some, more))
    assert device.weight_s(1e6, 1e3, num_rows, few) <= device.weight_s(1e6, 1e3, num_rows, many) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "points must have rows that rise from above 0, got []"),
        ([(4, 1.0), (2, 1.0)], "points must have rows that rise from above 0, got [4, 2]"),
        ([(0, 1.0)], "points must have rows that rise from above 0, got [0]"),
        ([(1, 0.0)], "points must have positive seconds, got [0.0]"),
        ([(1, float("nan"))], "points must have positive seconds, got [nan]"),
    ],
)
def test_points_that_are_none_are_refused(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        RowCurve.of(wrong)
