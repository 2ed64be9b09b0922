"""Devices that a plan knows without measuring them."""

from __future__ import annotations

import math

from nanospec.planning.device import Device, LoopRates, Overheads, RowCurve, from_rates

DEVICES = ("h200", "cpu", "measured")
KERNEL_S = 2e-6

H200 = from_rates(
    "h200",
    "4.3 TB/s of a large copy, 700 TFLOP/s of dense 16-bit products, 2 us per kernel of a CUDA graph, 10 us and "
    "350 GB/s per collective over NVLink: assumed, not measured with this package",
    bytes_per_s=4.3e12,
    flops_per_s=7e14,
    op_s=KERNEL_S,
    exchange_s=1e-5,
    exchange_bytes_per_s=3.5e11,
)


def device_of_data_sheet(name: str, terabytes_per_s: float, teraflops: float) -> Device:
    """A GPU that nobody has measured, by its bandwidth and its dense 16-bit products per second.

    Raises ValueError for numbers that are not positive.
    """
    for what, rate in (("bandwidth", terabytes_per_s), ("tflops", teraflops)):
        if not 0 < rate < math.inf:
            raise ValueError(f"{what} must be a positive number, got {rate:g}")
    source = (
        f"{terabytes_per_s:g} TB/s and {teraflops:g} TFLOP/s of dense 16-bit products, given, not measured; 2 us per "
        "kernel of a CUDA graph, as assumed of h200"
    )
    return from_rates(name, source, 1e12 * terabytes_per_s, 1e12 * teraflops, KERNEL_S)


def _cpu(fast_bytes_per_s: float, slow_bytes_per_s: float, flops_per_s: float) -> Device:
    curves = [RowCurve.roofline(1 / rate, 1 / flops_per_s) for rate in (fast_bytes_per_s, slow_bytes_per_s)]
    return Device(
        name="cpu",
        source="two cores of a Xeon with AMX, rounded: 37 GB/s of weights that stay in its cache, 28 GB/s of others, "
        "in long rows; --device measured measures this machine",
        weights=(LoopRates(67e6, curves[0], 15e-9), LoopRates(512e6, curves[1], 40e-9)),
        attention=RowCurve(((1.0, 2e-10), (8.0, 4e-10), (128.0, 1.4e-9))),
        bytes_per_s=11e9,
        gather_s=1 / 30e9,
        narrow_logit_s=2.5e-9,
        wide_logit_s=1e-9,
        best_logit_s=0.9e-9,
        activation_s=0.1e-9,
        overheads=Overheads(4.5e-4, 9e-4, 6e-4, 1e-4, 3e-4, 2e-4),
        layer_factor=1.2,
    )


CPU = _cpu(37e9, 28e9, 1e12)
