"""`nanospec inspect`: what a checkpoint is, and whether it drafts for a target."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nanospec.cli.errors import EXIT_BAD_INPUT, one_line_errors, printable
from nanospec.cli.options import DebugOption, JsonOption, find_embedded_draft
from nanospec.cli.progress import busy

if TYPE_CHECKING:
    from nanospec.checkpoints.describe import CheckpointDescription

PLAIN_WIDTH = 140  # of a file or pipe, which has no width of its own
NOT_A_ROW = ("problems",)


def inspect(
    path: Annotated[
        str,
        typer.Argument(
            help="Checkpoint: directory or hub id; mtp: modules in that of --target; eagle, eagle3 or medusa: the "
            "embedded drafts, beside their target."
        ),
    ],
    target: Annotated[
        str | None, typer.Option(help="Check it as a draft of this target: path or hub id; its weights are not read.")
    ] = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Say what a checkpoint is, from its tensors; exit status 2 if it cannot be used."""
    with one_line_errors(debug):
        from nanospec.checkpoints.describe import describe_checkpoint  # loads transformers, which --help can do without

        path, target = find_embedded_draft(path, target)
        if Path(path).expanduser().is_file():
            raise ValueError(
                f"path must be a checkpoint directory or a hub id, got the file {path!r}: a config.json alone is for "
                "nanospec plan"
            )
        with busy("reading"):
            description = describe_checkpoint(path, target)
    if json_output:
        typer.echo(json.dumps({**asdict(description), "target": target}, indent=2))
    else:
        _print_description(description, target)
    if description.problems:
        raise typer.Exit(EXIT_BAD_INPUT)


def _print_description(description: CheckpointDescription, target: str | None) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)
    table = Table.grid(padding=(0, 2))
    for name, value in asdict(description).items():
        if name not in NOT_A_ROW and value not in (None, []):
            table.add_row(name.replace("_", " ").replace("num ", ""), Text(printable(_cell(value))))
    if target is not None and not description.problems:
        table.add_row("target", Text(f"fits {target}"))
    for problem in description.problems:
        table.add_row("problem", Text(printable(" ".join(problem.split()))))
    console.print(table)


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
