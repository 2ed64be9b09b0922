"""The sections in the order in which they run, and the loop that measures or skips their parts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from bench.gpu.copy_bandwidth import copy_parts
from bench.gpu.correctness import correctness_parts
from bench.gpu.deadline import Deadline
from bench.gpu.draft_section import draft_parts
from bench.gpu.kernel_checks import WrongResultError
from bench.gpu.kernels_section import kernel_parts
from bench.gpu.run_context import BenchRun, Figures, Part
from bench.gpu.scaling import scaling_parts
from bench.gpu.steps import step_parts

# Correctness comes first; what carries the targets comes before what only shows how they scale.
SECTIONS: dict[str, Callable[[BenchRun], list[Part]]] = {
    "correctness": correctness_parts,
    "copy": copy_parts,
    "draft": draft_parts,
    "step": step_parts,
    "scaling": scaling_parts,
    "kernels": kernel_parts,
}
NOT_ASKED_FOR = "not asked for"


def run_sections(run: BenchRun, wanted: list[str], deadline: Deadline) -> Iterator[dict[str, Figures]]:
    """All sections so far, {section: {part: figures or {"skipped": reason}}}, after every part.

    A wrong result ends the run: its part says "failed", and WrongResultError is raised after it was yielded.
    """
    sections: dict[str, Figures] = {name: {} for name in SECTIONS}
    for name, parts in SECTIONS.items():
        for part in parts(run):
            reason = NOT_ASKED_FOR if name not in wanted else _refusal(run, part, deadline)
            if reason is not None:
                sections[name][part.name] = {"skipped": reason}
                continue
            began = time.monotonic()
            try:
                sections[name][part.name] = part.measure(run)
            except WrongResultError as error:
                sections[name][part.name] = {"failed": str(error)}
                yield sections
                raise
            sections[name][part.name]["seconds"] = round(time.monotonic() - began, 2)
            yield sections
        if name == "copy":
            run = replace(run, copy_bytes_per_s=sections["copy"]["device"].get("bytes_per_s"))
    yield sections


def _refusal(run: BenchRun, part: Part, deadline: Deadline) -> str | None:
    return deadline.refusal(part.needed_s if run.device.type == "cuda" else 0.0)
