"""`nanospec generate`: text streams to stdout, one line of figures follows on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanospec.cli.errors import one_line_errors
from nanospec.cli.options import (
    AcceptanceOption,
    CompileOption,
    CudaGraphOption,
    DebugOption,
    DeviceOption,
    DraftOption,
    DraftTemperatureOption,
    DtypeOption,
    JsonOption,
    LookupOption,
    MinPOption,
    NumTopOption,
    RepetitionPenaltyOption,
    StopOption,
    TargetOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    TreeOption,
    VocabOption,
    load_decoder,
)
from nanospec.cli.progress import busy
from nanospec.cli.prompts import read_text

if TYPE_CHECKING:
    from nanospec.result import GenerationResult, StreamPiece
    from nanospec.stats import GenerationStats


def generate(
    prompt: Annotated[str | None, typer.Argument(help="What the model is asked.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="Read the prompt from this file instead.")] = None,
    target: TargetOption = None,
    draft: DraftOption = None,
    lookup: LookupOption = False,
    vocab: VocabOption = "in-context",
    max_new_tokens: Annotated[int, typer.Option(help="Stop after this many tokens.")] = 256,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    min_p: MinPOption = 0.0,
    repetition_penalty: RepetitionPenaltyOption = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same tokens.")] = None,
    acceptance: AcceptanceOption = "exact",
    stop: StopOption = None,
    tree: TreeOption = None,
    num_top: NumTopOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    draft_temperature: DraftTemperatureOption = None,
    compile: CompileOption = False,
    cuda_graph: CudaGraphOption = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Generate text: exactly the target's own output, drafted from a small vocabulary."""
    with one_line_errors(debug):
        text = _prompt_text(prompt, prompt_file)
        options: dict[str, Any] = {"dtype": dtype, "device": device, "num_top": num_top, "compile": compile}
        options |= {"cuda_graph": cuda_graph, "draft_temperature": draft_temperature, "lookup": lookup}
        decoder = load_decoder(target, draft, vocab=vocab, tree=tree, **options)
        input_ids = decoder.encode(text)
        if compile:
            with busy("compiling"):
                decoder.warm_up()
        request: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "seed": seed,
            "acceptance": acceptance,
            "stop_strings": tuple(stop or ()),
        }
        if json_output:
            with busy("generating"):
                result = decoder.generate(input_ids, **request)
            typer.echo(json.dumps(result_object(result), indent=2))
            return
        _print_pieces(decoder.stream(input_ids, **request))
        assert decoder.last_stats is not None, "a stream ended without figures"
        typer.echo(figures_line(decoder.last_stats), err=True)


def _print_pieces(pieces: Iterator[StreamPiece]) -> None:
    """Text as it comes; once some has, a line break ends it, whatever else does."""
    first = next(pieces)
    try:
        for piece in chain([first], pieces):
            typer.echo(piece.text, nl=False)
    finally:
        typer.echo()


def result_object(result: GenerationResult) -> dict[str, Any]:
    """The object that `--json` prints."""
    stats = result.stats
    return {
        "text": result.text,
        "token_ids": result.token_ids,
        "finish_reason": result.finish_reason,
        "lossless": result.lossless,
        "new_tokens": stats.new_tokens,
        "target_passes": stats.target_passes,
        "mean_accept_length": stats.mean_accept_length,
        "mean_active_vocab": stats.mean_active_vocab,
        "observed_ids": stats.observed_ids,
        "unsayable_ids": stats.unsayable_ids,
        "tokens_per_second": stats.tokens_per_second,
        "seconds": dict(stats.seconds),
        "vocab": stats.vocab,
        "drafter": stats.drafter,
        "tree": None if stats.tree is None else stats.tree._asdict(),
        "device": stats.device,
        "dtype": stats.dtype,
    }


def figures_line(stats: GenerationStats) -> str:
    """The figures of one generation for a reader."""
    tree = "" if stats.tree is None else f", tree {','.join(map(str, stats.tree))}"
    unsayable = ""
    if stats.observed_ids:
        unsayable = f"; {stats.unsayable_ids:,} of {stats.observed_ids:,} ids seen are outside the draft's vocabulary"
    return (
        f"{stats.new_tokens} tokens in {sum(stats.seconds.values()):.2f} s: {stats.tokens_per_second:.1f} tokens/s, "
        f"{stats.mean_accept_length:.2f} tokens per target pass, drafted from {stats.mean_active_vocab:,.0f} rows "
        f"({stats.vocab}{tree}, {stats.device}, {stats.dtype}){unsayable}"
        f"{'' if stats.lossless else '; lossy acceptance'}"
    )


def _prompt_text(prompt: str | None, prompt_file: Path | None) -> str:
    if (prompt is None) == (prompt_file is None):
        raise ValueError(f"give either PROMPT or --prompt-file, got {'neither' if prompt is None else 'both'}")
    try:
        text = prompt if prompt_file is None else read_text(prompt_file)
    except FileNotFoundError:
        raise FileNotFoundError(f"prompt-file must be a file of text, but {prompt_file} does not exist") from None
    if not text or not text.strip():
        raise ValueError(f"{'PROMPT' if prompt_file is None else prompt_file} must hold text, got {text!r}")
    return text
