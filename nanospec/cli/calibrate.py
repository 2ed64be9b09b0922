"""`nanospec calibrate`: a list of the most frequent ids, of text or of what the target itself generates."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanospec.cli.compare import encode_prompts
from nanospec.cli.errors import one_line_errors
from nanospec.cli.options import (
    DebugOption,
    DeviceOption,
    DraftOption,
    DtypeOption,
    JsonOption,
    TargetOption,
    TopKOption,
    TopPOption,
    load_decoder,
)
from nanospec.cli.progress import amount_bar, busy
from nanospec.cli.prompts import read_prompts
from nanospec.demo import TARGET_DIRECTORY
from nanospec.draft_names import PROMPT_LOOKUP

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from nanospec.calibration.token_counts import TokenCounts

STATE_SUFFIX = ".counting"
LARGE_PIECES = (
    "note: this tokenizer gives lines other ids alone than inside a text, so text is counted in pieces of 2^20 "
    "characters; where documents are to be counted apart, give JSON lines"
)
SIZES = tuple(1 << power for power in range(10, 18))  # of the lists whose coverage is told


@dataclass(frozen=True)
class Calibration:
    """What was counted, and the list that came of it.

    num_kept  ids that are in it whatever was counted: EOS and other special tokens
    coverage  number of ids -> share of the counted tokens that so many of them, the first, account for
    """

    out: str
    num_ids: int
    num_kept: int
    num_texts: int
    num_tokens: int
    num_seen: int
    coverage: dict[int, float]


def calibrate(
    out: Annotated[Path, typer.Option(help="List to write: .safetensors, or .pt as SGLang's token map.")],
    corpus: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="Text to count: lines or JSON lines, also .xz and .gz.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Directory or hub id of the tokenizer. Default: the embedded pair's.")
    ] = None,
    field: Annotated[str, typer.Option(help="Field of JSON lines that holds the text.")] = "response",
    format: Annotated[
        str | None, typer.Option(metavar="text|jsonl", help="Default: by the name of the file; text for -.")
    ] = None,
    num_ids: Annotated[int | None, typer.Option(help="Length of the list. Default: all ids that occurred.")] = None,
    generate: Annotated[
        bool, typer.Option("--generate", help="Count what the target generates instead (VocabTrim).")
    ] = False,
    target: TargetOption = None,
    draft: DraftOption = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts to generate from, as in compare. Default: the built-in ones.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Generate from the first prompts only.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate per prompt.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 generates greedily.")] = 0.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    seed: Annotated[int, typer.Option(help="Of the first prompt; every further one has the next.")] = 0,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Count how often ids occur and write the most frequent ones as a list for static:FILE and trim.

    EOS and special tokens come first, whatever was counted; ids that never occurred are left out. An interrupted count
    goes on where it was: its state lies beside --out until the list is written.
    """
    with one_line_errors(debug):
        from nanospec.calibration.text_source import MissingField
        from nanospec.vocab.static_list import check_list_name

        check_list_name(out)
        if generate == (corpus is not None):
            raise ValueError(f"give either --corpus or --generate, got {'both' if generate else 'neither'}")
        _refuse_other_mode(
            generate,
            {"--tokenizer": tokenizer, "--format": format},
            {"--target": target, "--draft": draft, "--prompts": prompts, "--limit": limit},
        )
        if not out.parent.is_dir():
            raise FileNotFoundError(f"out must lie in a directory that exists, got {out}")
        state = out.with_name(out.name + STATE_SUFFIX)
        if corpus is not None:
            try:
                counted, kept = _count_corpus(corpus, tokenizer, format, field, state)
            except MissingField as error:
                raise ValueError(f"{error}; --field names the one that holds the text") from None
        else:
            sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "max_new_tokens": max_new_tokens}
            load = {"dtype": dtype, "device": device}
            counted, kept = _count_generated(target, draft, prompts, limit, seed, sampling, load, state)
        calibration = _write_list(out, counted, kept, num_ids)
        state.unlink(missing_ok=True)
    if json_output:
        typer.echo(json.dumps(asdict(calibration), indent=2))
    else:
        for line in describe(calibration):
            typer.echo(line)


def describe(calibration: Calibration) -> list[str]:
    """The calibration for a reader."""
    shares = ", ".join(f"{num_ids:,} ids {100 * share:.1f} %" for num_ids, share in calibration.coverage.items())
    return [
        f"{calibration.num_tokens:,} tokens of {calibration.num_texts:,} texts, {calibration.num_seen:,} distinct ids; "
        f"wrote {calibration.num_ids:,} to {calibration.out}, the first {calibration.num_kept} of them special tokens",
        f"share of the tokens: {shares}",
    ]


def _refuse_other_mode(generate: bool, of_corpus: dict[str, Any], of_generate: dict[str, Any]) -> None:
    """ValueError for the first option that belongs to the way of counting that was not asked for."""
    for name, value in (of_corpus if generate else of_generate).items():
        if value is not None:
            raise ValueError(f"{name} must be left out with {'--generate' if generate else '--corpus'}, got {value}")


def _count_corpus(
    corpus: str, tokenizer: str | None, format: str | None, field: str, state: Path
) -> tuple[TokenCounts, list[int]]:
    from nanospec.calibration.counting import count_ids, tokenized_by
    from nanospec.calibration.line_cuts import find_line_cuts
    from nanospec.calibration.text_source import TextSource

    with TextSource(corpus, format, field) as source:
        with busy("loading"):
            loaded, kept = _load_tokenizer(tokenizer)
        ids_of = tokenized_by(loaded)
        cuts = find_line_cuts(lambda text: ids_of([text], 0)[0])
        if source.format == "text" and not cuts.after_text:
            typer.echo(LARGE_PIECES, err=True)
        settings = {"tokenizer": tokenizer, "format": source.format, "field": field}
        with amount_bar("counting", source.total_bytes, "texts") as show:
            counted = count_ids(
                source.texts(cuts),
                ids_of,
                max(loaded.get_vocab().values()) + 1,
                state,
                settings,
                advance=lambda num_texts: show(source.bytes_read, num_texts),
            )
    return counted, kept


def _load_tokenizer(path: str | None) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """The tokenizer and the ids that a list for it always holds."""
    from nanospec.checkpoints.draft_ids import read_eos_ids, special_ids
    from nanospec.checkpoints.files import resolve_checkpoint
    from nanospec.checkpoints.target import load_tokenizer

    directory = TARGET_DIRECTORY if path is None else resolve_checkpoint(path, "tokenizer", weights=False)
    loaded = load_tokenizer(directory)
    if loaded is None:
        raise ValueError(f"tokenizer must be a directory or a hub id with a tokenizer, got {path!r}")
    return loaded, special_ids(loaded, read_eos_ids(directory))


def _count_generated(
    target: str | None,
    draft: str | None,
    prompts: Path | None,
    limit: int | None,
    seed: int,
    sampling: dict[str, Any],
    load: dict[str, Any],
    state: Path,
) -> tuple[TokenCounts, list[int]]:
    """One prompt at a time, so that none is generated from twice. Draft and device are settings of the count: in bf16
    and fp16 a near-tie may fall either way, by the rows of the trees and by the kernels."""
    from nanospec.calibration.counting import count_ids, generated_by
    from nanospec.checkpoints.draft_ids import special_ids

    read = read_prompts(prompts, limit)
    drafter = PROMPT_LOOKUP if target is not None and draft is None else draft
    decoder = load_decoder(target, drafter, vocab="in-context", tree=None, **load)
    encoded = encode_prompts(decoder, read)
    place = {"dtype": load["dtype"], "device": str(decoder.target.device)}
    settings = {"target": target, "draft": drafter, "seed": seed, **sampling, **place}
    with amount_bar("generating", len(read), "prompts") as show:
        counted = count_ids(
            [prompt.text for prompt in read],
            generated_by(decoder, encoded, seed, **sampling),
            decoder.target.vocab_size,
            state,
            settings,
            batch_texts=1,
            save_every_s=0.0,
            advance=lambda num_texts: show(num_texts, num_texts),
        )
    assert decoder.tokenizer is not None, "prompts were encoded"
    return counted, special_ids(decoder.tokenizer, sorted(decoder.eos_ids))


def _write_list(out: Path, counted: TokenCounts, kept: list[int], num_ids: int | None) -> Calibration:
    from nanospec.calibration.ranking import coverage, rank_ids
    from nanospec.vocab.static_list import write_static_list

    counts = counted.counts
    if counted.num_texts == 0:
        raise ValueError("the corpus must hold at least one text, got none")
    ids = rank_ids(counts, kept, num_ids)
    write_static_list(out, ids)
    return Calibration(
        out=str(out),
        num_ids=ids.shape[0],
        num_kept=len(kept),
        num_texts=counted.num_texts,
        num_tokens=int(counts.sum()),
        num_seen=int((counts > 0).sum()),
        coverage=_told(coverage(counts, ids)),
    )


def _told(shares: Tensor) -> dict[int, float]:
    sizes = [*(size for size in SIZES if size < shares.shape[0]), shares.shape[0]]
    return {size: float(shares[size - 1]) for size in sizes}
