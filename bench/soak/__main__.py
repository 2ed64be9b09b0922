"""python -m bench.soak --requests 2000"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.gpu.report import write_text
from bench.soak.plans import Mix
from bench.soak.report import as_json, as_lines
from bench.soak.run import SoakReport, soak
from nanospec import SpeculativeDecoder
from nanospec.cli.errors import one_line_errors
from nanospec.cli.machine import describe_machine
from nanospec.cli.options import DebugOption, DtypeOption, TargetOption, load_decoder
from nanospec.cli.prompts import read_prompts

EXIT_BAD = 1
JSON_NAME = "soak.json"
LOG_EVERY = 50
POLICIES = "in-context,hybrid:1024,hybrid:1024+prior,static:4096,full"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    requests: Annotated[int, typer.Option(min=1, help="How many requests.")] = 2000,
    minutes: Annotated[float | None, typer.Option(help="No round of requests begins after them.")] = None,
    target: TargetOption = None,
    draft: Annotated[str | None, typer.Option(help="Its EAGLE draft: path or hub id.")] = None,
    vocab: Annotated[str, typer.Option(metavar="NAME,NAME", help="Draft vocabularies.")] = POLICIES,
    tree: Annotated[
        str, typer.Option(metavar="DEPTH,BRANCHING,NODES", help="Small: a soak is many requests.")
    ] = "3,3,8",
    dtype: DtypeOption = "float32",
    seed: Annotated[int, typer.Option(help="Of requests and rounds.")] = 0,
    max_batch: Annotated[int, typer.Option(min=1, help="Engines have 1 to so many rows.")] = 8,
    max_prompt_tokens: Annotated[int, typer.Option(min=1, help="Prompts have 1 to so many tokens.")] = 300,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Outputs have 1 to so many tokens.")] = 24,
    out: Annotated[Path | None, typer.Option(help=f"Directory for {JSON_NAME}, written as the soak goes on.")] = None,
    debug: DebugOption = False,
) -> None:
    """Decode many requests in every mixture through one pair; compare each with a serial replay, and watch memory.

    Exit status 1 when an output differs or memory grows. In float32, the default, a batch and a single request round
    alike enough not to part two tokens; bfloat16 does part near-ties. What float64 does not show was one.
    """
    with one_line_errors(debug):
        if minutes is not None and minutes <= 0:
            raise ValueError(f"minutes must be above 0, got {minutes:g}")
        policies = tuple(name.strip() for name in vocab.split(",") if name.strip())
        if not policies:
            raise ValueError(f"vocab must name a draft vocabulary, got {vocab!r}")

        soaked, spare = (
            load_decoder(target, draft, vocab=policies[0], tree=tree, dtype=dtype) for _ in ("soaked", "replaying")
        )
        mix = _mix(soaked, seed, policies, max_batch, max_prompt_tokens, max_new_tokens)
        about = {
            "command": shlex.join(["python", "-m", "bench.soak", *sys.argv[1:]]),
            "machine": describe_machine(soaked.target.device, soaked.target.dtype),
            "settings": {"num_requests": requests, "tree": soaked.tree._asdict(), **mix.as_json()},
        }
        limit_s = None if minutes is None else 60 * minutes
        report = _watch(soak(soaked, spare, mix, requests, limit_s=limit_s), requests, about, out)
        typer.echo("\n".join(as_lines(report)))
        if not report.is_good:
            raise typer.Exit(EXIT_BAD)


def _mix(
    decoder: SpeculativeDecoder, seed: int, policies: tuple[str, ...], most_batch: int, most_prompt: int, most_new: int
) -> Mix:
    """Requests cut from the built-in prompts. Raises ValueError for prompts beyond the context window."""
    window = decoder.target.context_window
    if most_prompt >= window:
        raise ValueError(f"max-prompt-tokens must be below the context window of {window}, got {most_prompt}")
    token_ids = [token_id for prompt in read_prompts(None) for token_id in decoder.encode(prompt.text)[0].tolist()]
    return Mix(seed, token_ids, decoder.target.vocab_size, policies, most_batch, most_prompt, most_new)


def _watch(reports: Iterator[SoakReport], num_requests: int, about: dict[str, Any], out: Path | None) -> SoakReport:
    """The last report; every fifty requests and at the end a line on stderr and the file."""
    report, next_line = SoakReport(), LOG_EVERY
    for report in reports:
        if report.counts["requests"] >= next_line:
            _note(report, num_requests, about, out)
            next_line = report.counts["requests"] + LOG_EVERY
    _note(report, num_requests, about, out)
    return report


def _note(report: SoakReport, num_requests: int, about: dict[str, Any], out: Path | None) -> None:
    counts = report.counts
    line = f"{counts['requests']} of {num_requests} requests, {counts['different']} different, {report.seconds:.0f} s"
    typer.echo(line, err=True)
    if out is not None:
        write_text(out / JSON_NAME, json.dumps({**about, **as_json(report)}, indent=2) + "\n")


if __name__ == "__main__":
    app()
