"""`nanospec compare`: the same prompts and tree with one draft vocabulary after the other, beside plain decoding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanospec.cli.errors import one_line_errors
from nanospec.cli.machine import describe_machine
from nanospec.cli.measure import (
    AUTOREGRESSIVE,
    Difference,
    find_differences,
    headless_ratios,
    num_runs,
    timed_runs,
)
from nanospec.cli.options import (
    DebugOption,
    DeviceOption,
    DraftOption,
    DtypeOption,
    JsonOption,
    TargetOption,
    TreeOption,
    load_decoder,
)
from nanospec.cli.progress import progress_bar
from nanospec.cli.prompts import read_prompts
from nanospec.cli.rows import Row, build_rows
from nanospec.cli.table import print_comparison

if TYPE_CHECKING:
    from nanospec.decode import SpeculativeDecoder

VOCABS = ("full", "static:4096", "static:32768", "in-context")
TREE_IS_MEASURED_WITH = "in-context"
EXIT_NOT_IDENTICAL = 1


def compare(
    prompts: Annotated[
        Path | None, typer.Option(help="JSON lines with `prompt` or `turns`. Default: the built-in prompts.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use the first prompts only.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate per prompt.")] = 64,
    vocab: Annotated[
        list[str] | None,
        typer.Option(
            metavar="in-context|full|static:N|static:FILE",
            help=f"May be repeated. Default: {', '.join(VOCABS)}.",
        ),
    ] = None,
    target: TargetOption = None,
    draft: DraftOption = None,
    tree: TreeOption = "auto",
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Compare draft vocabularies: speed, acceptance, and whether every token is the target's own.

    Exit status 1 when greedy tokens differ from autoregressive decoding by more than a near-tie.
    """
    with one_line_errors(debug):
        specs = name_rows(vocab or VOCABS)
        texts = read_prompts(prompts, limit)
        if max_new_tokens < 1:
            raise ValueError(f"max-new-tokens must be at least 1, got {max_new_tokens}")
        first = TREE_IS_MEASURED_WITH if TREE_IS_MEASURED_WITH in specs else next(iter(specs.values()))
        decoder = load_decoder(target, draft, vocab=first, tree=tree, dtype=dtype, device=device)
        rows, differences = run_comparison(decoder, specs, texts, max_new_tokens)
        if json_output:
            about = {
                "count": len(texts),
                "max_new_tokens": max_new_tokens,
                "source": prompts.name if prompts else "demo",
            }
            typer.echo(json.dumps(_comparison_object(decoder, rows, differences, about), indent=2))
        else:
            print_comparison(rows, differences)
    if not all(row.identical for row in rows):
        raise typer.Exit(EXIT_NOT_IDENTICAL)


def name_rows(specs: Sequence[str]) -> dict[str, str]:
    """Row name -> vocabulary: "static-4096" for "static:4096", a list in a file by the name of the file.

    Raises ValueError when two vocabularies would share a name.
    """
    named: dict[str, str] = {}
    for spec in specs:
        kind, _, detail = spec.partition(":")
        name = f"{kind}-{Path(detail).name}" if detail else kind
        if name in named or name == AUTOREGRESSIVE:
            raise ValueError(f"vocab must be given once per name, got {spec!r} beside the row {name!r}")
        named[name] = spec
    return named


def run_comparison(
    decoder: SpeculativeDecoder, specs: dict[str, str], texts: Sequence[str], max_new_tokens: int
) -> tuple[list[Row], list[Difference]]:
    """Rows, autoregressive first, and every difference found."""
    decoders = {name: decoder.with_vocab(spec) for name, spec in specs.items()}
    prompts = [decoder.encode(text) for text in texts]
    runners = {AUTOREGRESSIVE: decoder.generate_autoregressive, **{name: d.generate for name, d in decoders.items()}}
    with progress_bar("comparing", num_runs(len(runners), len(prompts))) as advance:
        results = timed_runs(runners, prompts, max_new_tokens, advance)
        headless = headless_ratios(decoders, prompts, max_new_tokens, advance)

    def rerun(prompt: int):
        return decoder.generate_autoregressive(prompts[prompt], max_new_tokens=max_new_tokens, return_margins=True)

    differences = find_differences(results, rerun, decoder.target.dtype)
    return build_rows(results, headless, differences), differences


def _comparison_object(
    decoder: SpeculativeDecoder, rows: Sequence[Row], differences: Sequence[Difference], about: dict[str, Any]
) -> dict[str, Any]:
    return {
        "rows": [asdict(row) for row in rows],
        "differences": [difference._asdict() for difference in differences],
        "tree": decoder.tree._asdict(),
        "prompts": about,
        "machine": describe_machine(decoder.target.device, decoder.target.dtype),
    }
