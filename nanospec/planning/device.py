"""What a device does per second, as few numbers as a plan needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class RowCurve(NamedTuple):
    """Seconds for a unit of work over n rows at once, by measured points (n, seconds): linear between them, as at the
    first below it, in proportion to n beyond the last."""

    points: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, points: Sequence[tuple[float, float]]) -> RowCurve:
        """Of measured points in order of rows. More rows never take less time: what noise says is raised to the
        slowest of fewer rows. Raises ValueError for no points, rows out of order or seconds that are not positive."""
        rows = [num_rows for num_rows, _ in points]
        if not points or rows != sorted(set(rows)) or rows[0] <= 0:
            raise ValueError(f"points must have rows that rise from above 0, got {rows}")
        if not all(0 < seconds < math.inf for _, seconds in points):
            raise ValueError(f"points must have positive seconds, got {[seconds for _, seconds in points]}")
        slowest, raised = 0.0, []
        for num_rows, seconds in points:
            slowest = max(slowest, seconds)
            raised.append((num_rows, slowest))
        return cls(tuple(raised))

    @classmethod
    def roofline(cls, memory_s: float, row_s: float) -> RowCurve:
        """A unit that takes `memory_s` to be read and `row_s` of arithmetic per row: the larger of the two."""
        return cls(((max(1.0, memory_s / row_s), max(memory_s, row_s)),))

    def seconds(self, num_rows: float) -> float:
        before, last = self.points[0], self.points[-1]
        if num_rows >= last[0]:
            return last[1] * num_rows / last[0]
        for point in self.points:
            if num_rows <= point[0]:
                share = 0.0 if point == before else (num_rows - before[0]) / (point[0] - before[0])
                return before[1] + max(share, 0.0) * (point[1] - before[1])
            before = point
        raise AssertionError("a point lies at or beyond every smaller number of rows")


class LoopRates(NamedTuple):
    """Products whose weights a loop goes through again and again.

    num_bytes  of all these weights: what fits into a cache is read faster
    byte_s     seconds per byte of weights over n rows
    output_s   seconds per output beside its bytes: its weights are a stretch of memory that reading begins anew
    """

    num_bytes: float
    byte_s: RowCurve
    output_s: float = 0.0

    def seconds(self, num_bytes: float, num_outputs: float, num_rows: float) -> float:
        return num_bytes * self.byte_s.seconds(num_rows) + num_outputs * self.output_s


class Overheads(NamedTuple):
    """Seconds of what takes no time for its size: calls, launches, book-keeping.

    target_layer, target_pass  per layer of a target and per pass beside them
    level, draft               per level of a draft, its one layer, head and children included, and per tree beside them
    vocabulary                 per update of a vocabulary that follows the context
    step                       readback, compaction, the loop itself
    """

    target_layer: float
    target_pass: float
    level: float
    draft: float
    vocabulary: float
    step: float


@dataclass(frozen=True)
class Device:
    """Where a pair is to run, in 16-bit numbers.

    source         where these numbers come from
    weights        of loops over few bytes and over many, smallest first
    layer_factor   what products take between the other operations of a layer, over what they take in such a loop
    attention      seconds over n rows per (cached token x number of a query)
    bytes_per_s    of anything else that is read
    gather_s       seconds per byte of rows that are picked from a larger matrix first, beyond their product
    narrow_logit_s, wide_logit_s  seconds per logit of log-softmax and best children, below 16,384 columns and above
    best_logit_s   seconds per logit of the target's best ids
    activation_s   seconds per number of element-wise operations
    exchange_s, exchange_bytes_per_s  a collective among the devices of one machine; None: there is one device
    """

    name: str
    source: str
    weights: tuple[LoopRates, ...]
    attention: RowCurve
    bytes_per_s: float
    gather_s: float
    narrow_logit_s: float
    wide_logit_s: float
    best_logit_s: float
    activation_s: float
    overheads: Overheads
    layer_factor: float = 1.0
    exchange_s: float | None = None
    exchange_bytes_per_s: float = math.inf

    def weight_s(self, num_bytes: float, num_outputs: float, num_rows: float, footprint: float) -> float:
        """Seconds of products of n rows with so many bytes of weights, which make so many outputs of a row, in a loop
        over `footprint` bytes. Between two measured loops it is the logarithm that counts."""
        smaller = self.weights[0]
        for larger in self.weights:
            if footprint < larger.num_bytes:
                break
            smaller = larger
        fast, slow = (loop.seconds(num_bytes, num_outputs, num_rows) for loop in (smaller, larger))
        share = 0.0
        if smaller.num_bytes < footprint < larger.num_bytes:
            share = math.log(footprint / smaller.num_bytes) / math.log(larger.num_bytes / smaller.num_bytes)
        return fast + share * (slow - fast)

    @property
    def stream_bytes_per_s(self) -> float:
        """At which weights that no cache holds are read."""
        return max(self.bytes_per_s, 1 / self.weights[-1].byte_s.seconds(1))

    def exchange(self, num_bytes: float) -> float:
        """Seconds of one collective over so many bytes."""
        assert self.exchange_s is not None, "the caller checks"
        return self.exchange_s + num_bytes / self.exchange_bytes_per_s


def from_rates(
    name: str,
    source: str,
    bytes_per_s: float,
    flops_per_s: float,
    op_s: float,
    exchange_s: float | None = None,
    exchange_bytes_per_s: float = math.inf,
) -> Device:
    """A device of which only bandwidth, arithmetic and the time of one operation are known: everything reads at one
    rate, and an overhead is a number of operations."""
    read_s = 1 / bytes_per_s
    # A 16-bit weight is 2 bytes and 2 operations per row; a cached number of a key or value 2 of each as well.
    return Device(
        name=name,
        source=source,
        weights=(LoopRates(1.0, RowCurve.roofline(read_s, 1 / flops_per_s)),),
        attention=RowCurve(((1.0, 4 / flops_per_s),)),
        bytes_per_s=bytes_per_s,
        gather_s=0.0,  # a kernel reads the rows where they lie
        narrow_logit_s=LOGIT_BYTES * read_s,
        wide_logit_s=LOGIT_BYTES * read_s,
        best_logit_s=BEST_BYTES * read_s,
        activation_s=ACTIVATION_BYTES * read_s,
        overheads=Overheads(*(count * op_s for count in OPERATIONS)),
        exchange_s=exchange_s,
        exchange_bytes_per_s=exchange_bytes_per_s,
    )


LOGIT_BYTES = 2 + 2 + 4 + 4 + 4  # written, read, float32 log-probabilities written, then read for the best
BEST_BYTES = 2 + 2 + 2  # written, read twice: maxima of blocks, then the blocks
ACTIVATION_BYTES = 8  # two numbers read, one written, part of them float32
OPERATIONS = Overheads(target_layer=40, target_pass=30, level=45, draft=60, vocabulary=35, step=25)
