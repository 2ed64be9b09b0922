"""From timings to a device's numbers, on machines whose numbers are known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nanospec.planning import calibrate, random_decoder
from nanospec.planning.calibrate import SMALL_EFFORT, measure_cpu
from nanospec.planning.devices import CPU
from nanospec.planning.random_decoder import DecoderSizes, StepSeconds, measure_layer_factor
from nanospec.planning.step_cost import DraftRows, Pair, Setting, step_cost
from nanospec.tree_shape import TreeShape

SIZES = DecoderSizes(64, 64, 2, 2, 16, 512, TreeShape(2, 4, 8))
ROUNDING = 1e-9  # relative, of sums of float64 seconds


def test_bytes_and_outputs_are_told_apart(monkeypatch):
    """A machine that takes 2 ns per byte for one row, more for more rows, and 70 ns per output."""

    def seconds_of(call, _):
        states, matrices = call.args
        per_byte = 2e-9 * (1 + states.shape[0] / 10)
        return sum(2 * matrix.numel() * per_byte + 7e-8 * matrix.shape[0] for matrix in matrices)

    monkeypatch.setattr(calibrate, "_seconds", seconds_of)
    for loop in calibrate._loop_rates(SMALL_EFFORT):
        assert loop.output_s == pytest.approx(7e-8, rel=ROUNDING)
        for num_rows in SMALL_EFFORT.num_rows:
            assert loop.byte_s.seconds(num_rows) == pytest.approx(2e-9 * (1 + num_rows / 10), rel=ROUNDING)


@pytest.mark.parametrize(("slower", "found"), [(1.7, 1.7), (1.0, 1.0), (0.5, 1.0)])
def test_what_products_take_longer_within_layers_is_found_in_whole_steps(monkeypatch, slower, found):
    """At least as long as in a loop of their own."""

    def stages_of(decoder, num_steps):
        target = random_decoder.model_sizes(decoder.target.model)
        layer = random_decoder._layer_of(SIZES)
        draft = random_decoder.eagle_sizes(random_decoder.Family.EAGLE, layer, target, SIZES.num_ids)
        setting = Setting(SIZES.tree, random_decoder.PROMPT_LENGTH + num_steps, accept_length=1.5)
        device = replace(CPU, layer_factor=slower)
        cost = step_cost(Pair(device, target, draft, setting), DraftRows(100, follows=True))
        return StepSeconds(cost.draft, cost.verify, 9.0, 9.0, tokens=1.5, active_rows=100.0)

    monkeypatch.setattr(random_decoder, "stage_seconds", stages_of)
    assert measure_layer_factor(CPU, SIZES, num_steps=3) == pytest.approx(found, rel=1e-6)


def test_a_machine_can_be_measured():
    device = measure_cpu(SMALL_EFFORT)
    assert device.name == "measured"
    assert "threads" in device.source
    assert [loop.num_bytes for loop in device.weights] == list(SMALL_EFFORT.footprints)
    assert min(device.overheads) >= 0
    assert min(device.bytes_per_s, device.attention.seconds(1), device.narrow_logit_s, device.best_logit_s) > 0
    assert device.layer_factor >= 1
    assert device.exchange_s is None
