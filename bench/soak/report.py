"""What a soak found, as one JSON object and as a few lines of text."""

from __future__ import annotations

from typing import Any

from bench.soak.run import SoakReport

MEGABYTE = 1e6


def as_json(report: SoakReport) -> dict[str, Any]:
    """Every figure; "verdict" is "good" or "bad", and "is_complete" says whether all requests have run."""
    return {
        "verdict": "good" if report.is_good else "bad",
        "is_complete": report.is_complete,
        "seconds": round(report.seconds, 1),
        "counts": dict(report.counts),
        "differences": report.differences,
        "output_digest": report.output_digest,
        "memory": {name: {**slope._asdict(), "verdict": slope.verdict} for name, slope in report.slopes.items()},
        "samples": [sample._asdict() for sample in report.samples],
    }


def as_lines(report: SoakReport) -> list[str]:
    """The same in a few lines."""
    counts = report.counts
    by_way = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()) if name.startswith("by "))
    lines = [
        f"{counts['requests']} requests in {counts['rounds']} rounds, {report.seconds:.0f} s"
        + ("" if report.is_complete else ", ended by its time limit"),
        f"{by_way}: {counts['whole']} whole, {counts['left early']} left early, {counts['not begun']} not begun; "
        f"{counts['tokens']} tokens",
        f"replayed alone {counts['replayed']}, different {counts['different']}; outputs {report.output_digest[:16]}",
        *(f"  {line}" for line in report.differences),
    ]
    for name, slope in report.slopes.items():
        values = [value for sample in report.samples if (value := getattr(sample, name)) is not None]
        most = f"at most {max(values) / MEGABYTE:.1f} MB, " if values else ""
        lines.append(
            f"memory, {name}: {slope.verdict}: {most}{slope.bytes_per_request:+.0f} bytes per request "
            f"(standard error {slope.error:.0f}, bound {slope.bound:.0f}, {slope.num_samples} samples)"
        )
    unjudged = [name for name, slope in report.slopes.items() if not slope.is_judged]
    verdict = "good" + (f", memory not judged: {', '.join(unjudged)}" if unjudged else "")
    return [*lines, verdict if report.is_good else "BAD"]
