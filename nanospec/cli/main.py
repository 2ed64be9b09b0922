"""The `nanospec` command and its sub-commands."""

from __future__ import annotations

from typing import Annotated

import typer

from nanospec.cli.calibrate import calibrate
from nanospec.cli.chat import chat
from nanospec.cli.compare import compare
from nanospec.cli.coverage import coverage
from nanospec.cli.explain import explain
from nanospec.cli.generate import generate
from nanospec.cli.inspect import inspect
from nanospec.cli.machine import package_version
from nanospec.cli.plan import plan
from nanospec.cli.train_router import train_router
from nanospec.cli.trim import trim

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command()(generate)
app.command()(chat)
app.command()(compare)
app.command()(coverage)
app.command()(explain)
app.command()(inspect)
app.command()(plan)
app.command()(calibrate)
app.command()(trim)
app.command()(train_router)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nanospec {package_version('nanospec')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Lossless tree speculation from a small draft vocabulary taken from the context."""
