"""python -m bench.gpu --out DIR"""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from bench.gpu.deadline import Deadline
from bench.gpu.kernel_checks import WrongResultError
from bench.gpu.plots import draw_plots
from bench.gpu.report import JSON_NAME, MARKDOWN_NAME, write_report
from bench.gpu.run_context import BenchRun, read_device
from bench.gpu.section_table import SECTIONS, run_sections
from bench.gpu.sizes import SIZES
from nanospec.cli.errors import one_line_errors
from nanospec.cli.machine import describe_machine, package_version

EXIT_WRONG_RESULT = 1
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Directory for the JSON object, the table and the plots.")],
    device: Annotated[str | None, typer.Option(metavar="cuda|cpu", help="Default: cuda where there is one.")] = None,
    shapes: Annotated[str, typer.Option(metavar="|".join(SIZES), help="tiny is for trying it out.")] = "real",
    sections: Annotated[str, typer.Option(metavar="NAME,NAME", help="Sections to measure.")] = ",".join(SECTIONS),
    limit_s: Annotated[float, typer.Option(help="Seconds after which nothing new is started.")] = 460,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Time kernels, drafts and decoding steps over random weights at real shapes; check them first.

    Exit status 1 when a kernel or a decoding gives a wrong result: nothing is timed then.
    """
    with one_line_errors(debug):
        run, wanted = _read_options(device, shapes, sections, limit_s)
        about = _about(run, shapes, limit_s)
        deadline = Deadline(limit_s)
        figures: dict[str, dict[str, Any]] = {}
        try:
            for figures in run_sections(run, wanted, deadline):
                write_report(out, about, figures)
        except WrongResultError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(EXIT_WRONG_RESULT) from None
        about |= {"plots": draw_plots(out, figures), "seconds": round(deadline.spent_s, 1)}
        write_report(out, about, figures)
        typer.echo(f"{out / JSON_NAME} and {out / MARKDOWN_NAME} in {deadline.spent_s:.0f} s")


def _read_options(device: str | None, shapes: str, sections: str, limit_s: float) -> tuple[BenchRun, list[str]]:
    """Raises ValueError for an option that is not one of its choices or out of range."""
    place = read_device(device)
    if shapes not in SIZES:
        raise ValueError(f"shapes must be one of {', '.join(SIZES)}, got {shapes!r}")
    wanted = [name.strip() for name in sections.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in SECTIONS]
    if unknown or not wanted:
        raise ValueError(f"sections must be of {', '.join(SECTIONS)}, got {sections!r}")
    if limit_s <= 0:
        raise ValueError(f"limit-s must be above 0, got {limit_s:g}")
    return BenchRun(SIZES[shapes], place, DTYPES[place.type]), wanted


def _about(run: BenchRun, shapes: str, limit_s: float) -> dict[str, Any]:
    """Machine, versions, command and settings of the report."""
    machine = {**describe_machine(run.device, run.dtype), "triton": package_version("triton")}
    if run.device.type == "cuda":
        properties = torch.cuda.get_device_properties(run.device)
        machine |= {
            "cuda": torch.version.cuda or "unknown",
            "device_memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
        }
    command = shlex.join(["python", "-m", "bench.gpu", *sys.argv[1:]])
    settings = {**asdict(run.sizes), "tree": run.sizes.tree._asdict(), "shapes": shapes, "limit_s": limit_s}
    return {"machine": machine, "command": command, "settings": settings}


if __name__ == "__main__":
    app()
