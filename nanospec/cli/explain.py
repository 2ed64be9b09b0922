"""`nanospec explain`: one generation as a page that shows where every token came from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nanospec.all_or_nothing import new_file
from nanospec.cli.errors import one_line_errors
from nanospec.cli.options import (
    DebugOption,
    DeviceOption,
    DraftOption,
    DraftTemperatureOption,
    DtypeOption,
    LookupOption,
    NumTopOption,
    TargetOption,
    TemperatureOption,
    TreeOption,
    VocabOption,
    load_decoder,
)
from nanospec.cli.progress import busy


def explain(
    prompt: Annotated[str, typer.Argument(help="What the model is asked.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
    target: TargetOption = None,
    draft: DraftOption = None,
    lookup: LookupOption = False,
    vocab: VocabOption = "in-context",
    max_new_tokens: Annotated[int, typer.Option(help="Stop after this many tokens.")] = 128,
    temperature: TemperatureOption = 0.0,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same tokens.")] = None,
    tree: TreeOption = None,
    num_top: NumTopOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    draft_temperature: DraftTemperatureOption = None,
    debug: DebugOption = False,
) -> None:
    """Generate, and write an HTML page: how each token was produced, from which tree and how many ids."""
    with one_line_errors(debug):
        options = {"dtype": dtype, "device": device, "num_top": num_top, "lookup": lookup}
        decoder = load_decoder(target, draft, vocab=vocab, tree=tree, draft_temperature=draft_temperature, **options)
        from nanospec.explain import explain as explained  # loads torch, which --help can do without
        from nanospec.explain import page_of
        from nanospec.explain.page import MISS, count_misses

        with busy("generating"):
            explanation = explained(decoder, decoder.encode(prompt), max_new_tokens, temperature=temperature, seed=seed)
        with new_file(out) as partial:
            partial.write_text(page_of(explanation), encoding="utf-8")
        told = f"{len(explanation.tokens)} tokens in {len(explanation.steps)} steps, {count_misses(explanation)}"
        typer.echo(f"{out}: {told} ({MISS})")
