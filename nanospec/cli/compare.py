"""`nanospec compare`: the same prompts and tree with one draft vocabulary after the other, beside plain decoding."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanospec.cli.errors import one_line_errors
from nanospec.cli.machine import describe_machine
from nanospec.cli.measure import (
    AUTOREGRESSIVE,
    Difference,
    Runner,
    find_differences,
    headless_ratios,
    num_runs,
    timed_runs,
)
from nanospec.cli.options import (
    VOCAB_METAVAR,
    CompileOption,
    CudaGraphOption,
    DebugOption,
    DeviceOption,
    DraftOption,
    DraftTemperatureOption,
    DtypeOption,
    JsonOption,
    LookupOption,
    NumTopOption,
    TargetOption,
    TemperatureOption,
    TreeOption,
    load_decoder,
)
from nanospec.cli.progress import progress_bar
from nanospec.cli.prompts import Prompt, read_prompts
from nanospec.cli.rows import Row, build_rows
from nanospec.cli.table import print_comparison
from nanospec.draft_names import PROMPT_LOOKUP

if TYPE_CHECKING:
    from torch import Tensor

    from nanospec.decode import SpeculativeDecoder
    from nanospec.result import GenerationResult

VOCABS = ("full", "static:4096", "static:32768", "in-context", "hybrid:1024+prior")
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
            metavar=VOCAB_METAVAR,
            help=f"May be repeated. Default: {', '.join(VOCABS)}.",
        ),
    ] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Decode to max-new-tokens whatever comes.")] = False,
    temperature: TemperatureOption = 0.0,
    seed: Annotated[int, typer.Option(help="Of sampled text; the same in every row.")] = 0,
    target: TargetOption = None,
    draft: DraftOption = None,
    lookup: LookupOption = False,
    tree: TreeOption = "auto",
    num_top: NumTopOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    draft_temperature: DraftTemperatureOption = None,
    compile: CompileOption = False,
    cuda_graph: CudaGraphOption = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Compare draft vocabularies: speed, acceptance, and whether every token is the target's own.

    Exit status 1 when tokens differ from autoregressive decoding by more than a near-tie.
    """
    with one_line_errors(debug):
        if draft == PROMPT_LOOKUP and vocab:
            raise ValueError(f"--vocab must be left out with {PROMPT_LOOKUP}, which scores no ids, got {vocab}")
        specs = {PROMPT_LOOKUP: "full"} if draft == PROMPT_LOOKUP else name_rows(vocab or VOCABS)
        read = read_prompts(prompts, limit)
        if max_new_tokens < 1:
            raise ValueError(f"max-new-tokens must be at least 1, got {max_new_tokens}")
        first = TREE_IS_MEASURED_WITH if TREE_IS_MEASURED_WITH in specs else next(iter(specs.values()))
        options: dict[str, Any] = {"dtype": dtype, "device": device, "num_top": num_top, "compile": compile}
        options |= {"cuda_graph": cuda_graph, "draft_temperature": draft_temperature, "lookup": lookup}
        decoder = load_decoder(target, draft, vocab=first, tree=tree, **options)
        encoded = encode_prompts(decoder, read)
        decoders = build_decoders(decoder, specs, leave_out=not vocab)
        settings: dict[str, Any] = {"ignore_eos": ignore_eos}
        if temperature != 0.0:
            settings |= {"temperature": temperature, "seed": seed}
        rows, differences = run_comparison(decoder, decoders, encoded, max_new_tokens, settings)
        if json_output:
            about = {
                "count": len(read),
                "max_new_tokens": max_new_tokens,
                **settings,
                "source": prompts.name if prompts else "demo",
            }
            comparison = _comparison_object(decoder, rows, differences, about)
            asked = {"compile": compile, "draft_temperature": draft_temperature, "lookup": lookup}
            typer.echo(json.dumps({**comparison, **asked}, indent=2))
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


def encode_prompts(decoder: SpeculativeDecoder, prompts: Sequence[Prompt]) -> list[Tensor]:
    """input_ids int64 [1, P] of every prompt. Raises ValueError naming the place of one that cannot be decoded from."""
    from nanospec.request import Request  # loads torch, which --help can do without

    encoded = []
    for prompt in prompts:
        try:
            input_ids = decoder.encode(prompt.text)
            Request(input_ids).check(decoder.target.vocab_size, decoder.target.context_window)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{prompt.place}: {error}") from error
        encoded.append(input_ids)
    return encoded


def build_decoders(
    decoder: SpeculativeDecoder, specs: Mapping[str, str], leave_out: bool
) -> dict[str, SpeculativeDecoder]:
    """A decoder per row. With `leave_out`, a list of ids that the pair lacks costs its row and a line on stderr.

    Raises ValueError for any other vocabulary that cannot be built.
    """
    decoders = {}
    for name, spec in specs.items():
        try:
            decoders[name] = decoder.with_vocab(spec)
        except ValueError as error:
            if not (leave_out and spec.startswith(("static:", "hybrid:"))):
                raise
            typer.echo(f"left out {name}: {error}", err=True)
    return decoders


def run_comparison(
    decoder: SpeculativeDecoder,
    decoders: Mapping[str, SpeculativeDecoder],
    prompts: Sequence[Tensor],
    max_new_tokens: int,
    settings: Mapping[str, Any],
) -> tuple[list[Row], list[Difference]]:
    """Rows, autoregressive first, and every difference found; settings as `SpeculativeDecoder.generate` takes them."""

    def plain(input_ids: Tensor, **more: Any) -> GenerationResult:
        return decoder.generate_autoregressive(input_ids, **settings, **more)

    drafting = {name: partial(row.generate, **settings) for name, row in decoders.items()}
    runners: dict[str, Runner] = {AUTOREGRESSIVE: plain, **drafting}
    label = f"comparing {len(runners)} rows on {len(prompts)} prompts"
    with progress_bar(label, num_runs(len(runners), len(prompts)), "runs") as advance:
        results = timed_runs(runners, prompts, max_new_tokens, advance)
        headless = headless_ratios(drafting, prompts, max_new_tokens, advance)

    def rerun(prompt: int) -> GenerationResult:
        return plain(prompts[prompt], max_new_tokens=max_new_tokens, return_candidates=True)

    differences = find_differences(results, rerun, decoder.target.dtype, "temperature" in settings)
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
