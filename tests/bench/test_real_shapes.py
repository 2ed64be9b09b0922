"""The benchmark of real shapes, at tiny ones: every stage has figures beside a prediction, bars are judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bench.gpu.timing import Quartiles
from bench.real_shapes.__main__ import app
from bench.real_shapes.growth import AXES
from bench.real_shapes.report import bars, worst_errors
from bench.real_shapes.sizes import ACCEPT_LENGTHS, FULL, HEADLESS, HYBRID, SATURATED
from bench.real_shapes.stages import DRAFT, LEVEL, PLAIN, STEP, TARGET, VERIFY, beside, rates


def invoke(out: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["--out", str(out), "--shapes", "tiny", *options])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("real_shapes")
    result = invoke(out)
    assert result.exit_code == 0, result.output
    return out, json.loads((out / "real_shapes.json").read_text())


def test_every_stage_of_every_side_is_measured_and_predicted(finished):
    _, report = finished
    (pair,) = report["pairs"].values()
    sides = {FULL, "static-128", SATURATED, HYBRID, HEADLESS}
    assert set(pair["stages"][LEVEL]) == set(pair["stages"][DRAFT]) == sides
    assert set(pair["stages"][TARGET]) == {VERIFY, PLAIN}
    assert set(pair["stages"][STEP]) == sides - {HEADLESS}
    for rows in pair["stages"].values():
        for row in rows.values():
            assert row["median_ms"] > 0
            assert row["predicted_ms"] >= 0
    assert pair["drift"] > 0
    active = {name: row["active_rows"] for name, row in pair["stages"][STEP].items()}
    assert (active[FULL], active["static-128"], active[HYBRID]) == (640, 128, 64)
    assert 64 < active[SATURATED] <= 128


def test_every_sweep_has_figures_and_pictures(finished):
    out, report = finished
    assert list(report["growth"]) == list(AXES)
    assert all((out / name).exists() for name in report["plots"])
    assert report["plots"] == [f"draft_by_{name}{suffix}" for name in AXES for suffix in (".svg", ".png")]
    for growth in report["growth"].values():
        assert len(growth) > 1
        assert all(HYBRID in sides and HEADLESS in sides for sides in growth.values())


def test_tables_name_machine_command_and_sources_of_accept_lengths(finished):
    out, report = finished
    text = (out / "real_shapes.md").read_text()
    for expected in (report["machine"]["torch"], report["command"], "tree='auto'", *ACCEPT_LENGTHS):
        assert expected in text


def test_sweeps_that_do_not_fit_are_named(tmp_path):
    result = invoke(tmp_path, "--tree", "2,4,8", "--limit-s", "1e-6")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "real_shapes.json").read_text())
    assert report["skipped"].keys() == AXES.keys()
    assert report["pairs"]["tiny"]["tree"] == [2, 4, 8]


def test_an_error_is_the_prediction_over_the_median():
    row = beside(Quartiles(0.9e-3, 1e-3, 1.2e-3), 1.1e-3)
    assert row == {
        "median_ms": 1.0, "lower_quartile_ms": 0.9, "upper_quartile_ms": 1.2, "predicted_ms": 1.1, "error": 0.1
    }  # fmt: skip


def test_bars_and_errors_by_hand():
    def rows(**medians: float) -> dict:
        return {
            name.replace("_", " "): {"median_ms": median, "error": -median / 100} for name, median in medians.items()
        }

    times = {FULL: 10.0, HYBRID: 2.0, SATURATED: 4.0, HEADLESS: 1.6}
    stages = {name: rows(**{side.replace(" ", "_"): ms for side, ms in times.items()}) for name in (LEVEL, DRAFT, STEP)}
    judged = bars(stages)
    assert [round(bar.value, 3) for bar in judged] == [0.2, 1.25, 5.0, 0.4, 2.5, 2.5]
    assert [bar.is_met for bar in judged] == [True, False, True, False, False, True]
    assert worst_errors({**stages, "step: other": rows(full=90.0)}) == {LEVEL: -0.1, DRAFT: -0.1, STEP: -0.1}


def test_rates_are_accept_length_over_the_step():
    table = rates({FULL: {"median_ms": 500.0}, HEADLESS: {"median_ms": 1.0}}, {"median_ms": 250.0}, {"source": 4.0})
    assert table == {"source": {"accept_length": 4.0, "plain decoding": 4.0, FULL: 8.0}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shapes", "huge"), "shapes must be one of real, tiny, got 'huge'"),
        (("--limit-s", "0"), "limit-s must be above 0, got 0"),
        (("--tree", "1"), "tree must be 'auto' or"),
    ],
)
def test_a_wrong_option_is_one_line(tmp_path, options, message):
    result = invoke(tmp_path, *options)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert message in result.stderr
