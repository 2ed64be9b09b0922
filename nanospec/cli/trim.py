"""`nanospec trim`: a draft whose head holds the rows of listed ids only, and what that is worth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanospec.cli.compare import encode_prompts
from nanospec.cli.errors import one_line_errors
from nanospec.cli.measure import timed_runs
from nanospec.cli.options import DebugOption, DeviceOption, DtypeOption, JsonOption, find_embedded_draft
from nanospec.cli.progress import busy, progress_bar
from nanospec.cli.prompts import Prompt, read_prompts
from nanospec.tree_shape import TreeShape, default_tree_shape, parse_tree_shape

if TYPE_CHECKING:
    from nanospec.checkpoints.trim import DraftHead, TrimReport
    from nanospec.result import GenerationResult

WHOLE, TRIMMED = "whole", "trimmed"


@dataclass(frozen=True)
class Gain:
    """What a draft brings: tokens per target pass, memory-bound speed-up over plain decoding (MBSU) with `num_passes`
    passes of the draft per step, and tokens/s where it was run."""

    accept_length: float
    num_passes: int
    mbsu: float
    tokens_per_second: float | None = None


def trim(
    draft: Annotated[
        str, typer.Argument(help="EAGLE-1/2 or EAGLE-3 draft: directory or hub id; eagle, eagle3: embedded.")
    ],
    id_list: Annotated[
        str,
        typer.Option("--list", metavar="FILE|DIR", help="Ids, most frequent first, or a draft that scores few ids."),
    ],
    out: Annotated[Path, typer.Option(help="Directory to write, new or empty.")],
    num_ids: Annotated[int | None, typer.Option(help="Rows to keep: the first of the list. Default: all.")] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Target that it drafts for: path or hub id. EAGLE-1/2 takes its rows from there."),
    ] = None,
    accept_lengths: Annotated[
        str | None,
        typer.Option(metavar="WHOLE,TRIMMED", help="Known accept lengths, for the MBSU. Needs --target."),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Decode some prompts with both drafts. Needs --target.")
    ] = False,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts to measure on, as in compare. Default: the built-in ones.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Measure on the first prompts only.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to measure per prompt.")] = 64,
    tree: Annotated[
        str | None, typer.Option(metavar="DEPTH,BRANCHING,NODES", help="Tree of both; the depth counts in the MBSU.")
    ] = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Cut a draft's head down to listed ids (VocabTrim): less to read in every pass, the output stays the target's own.

    EOS ids are always kept, before those of the list. Reports rows, bytes and, with --accept-lengths or --measure, the
    memory-bound speed-up over plain decoding (MBSU).
    """
    with one_line_errors(debug):
        draft, target = find_embedded_draft(draft, target)
        if target is None and (measure or accept_lengths):
            raise ValueError(f"--target must be given with {'--measure' if measure else '--accept-lengths'}, got none")
        if measure and accept_lengths:
            raise ValueError(f"--accept-lengths must be left out with --measure, got {accept_lengths!r}")
        known = parse_accept_lengths(accept_lengths) if accept_lengths else None
        shape = None if tree is None else parse_tree_shape(tree)
        read = read_prompts(prompts, limit) if measure else []
        with busy("trimming"):
            head, report = _trim(draft, id_list, num_ids, out, target)
        gains: dict[str, Gain] = {}
        if known is not None:
            gains = _known_gains(head, report, known, shape)
        if measure:
            gains = _measured_gains(head, report, out, target or "", shape, read, max_new_tokens, dtype, device)
    if json_output:
        figures = {name: asdict(gain) for name, gain in gains.items()}
        typer.echo(json.dumps({**asdict(report), "out": str(out), "gains": figures}, indent=2))
    else:
        for line in describe(report, gains):
            typer.echo(line)


def parse_accept_lengths(text: str) -> tuple[float, float]:
    """Two numbers of "4.1,3.9"; ValueError for anything else."""
    try:
        whole, trimmed = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"accept-lengths must be 'WHOLE,TRIMMED', two numbers, got {text!r}") from None
    return whole, trimmed


def describe(report: TrimReport, gains: Mapping[str, Gain]) -> list[str]:
    """The report for a reader: one line of sizes, one per draft that was weighed."""
    lines = [
        f"{report.family}: {report.rows:,} rows -> {report.trimmed_rows:,}, head {report.head_bytes:,} bytes -> "
        f"{report.trimmed_head_bytes:,}, read per pass {report.params:,} weights -> {report.trimmed_params:,}"
    ]
    for name, gain in gains.items():
        speed = "" if gain.tokens_per_second is None else f", {gain.tokens_per_second:.1f} tokens/s"
        lines.append(
            f"{name}: accept length {gain.accept_length:.2f}, memory-bound speed-up {gain.mbsu:.2f}x with "
            f"{gain.num_passes} passes of the draft per step{speed}"
        )
    return lines


def _trim(draft: str, id_list: str, num_ids: int | None, out: Path, target: str | None) -> tuple[DraftHead, TrimReport]:
    """Reads, chooses, writes. The target's weights are loaded only where the draft has no head of its own."""
    from nanospec.all_or_nothing import refuse_occupied
    from nanospec.checkpoints.draft_ids import read_eos_ids, read_id_list
    from nanospec.checkpoints.files import resolve_checkpoint
    from nanospec.checkpoints.target import load_target, load_target_skeleton
    from nanospec.checkpoints.trim import choose_ids, has_own_head, read_draft_head, trim_draft

    refuse_occupied(out)
    if num_ids is not None and Path(id_list).is_dir():
        raise ValueError(f"--num-ids must be left out with a draft as list, whose ids have no order, got {num_ids}")
    model, directory = None, resolve_checkpoint(draft, "draft")
    kept = read_eos_ids(directory)
    if target is not None:
        model = load_target_skeleton(target) if has_own_head(directory) else load_target(target, device="cpu")[0]
        kept = read_eos_ids(resolve_checkpoint(target, "target")) + kept
    head = read_draft_head(directory, model)
    ids = choose_ids(read_id_list(id_list, head.vocab_size), head, num_ids, kept)
    return head, trim_draft(head, ids, out)


def _gain(
    head: DraftHead, params: int, accept_length: float, num_passes: int, tokens_per_second: float | None = None
) -> Gain:
    from nanospec.costs import memory_bound_speedup, params_per_pass

    assert head.target is not None, "a gain is over a target"
    mbsu = memory_bound_speedup(accept_length, num_passes, params, params_per_pass(head.target.model))
    return Gain(accept_length, num_passes, mbsu, tokens_per_second)


def _known_gains(
    head: DraftHead, report: TrimReport, accept_lengths: tuple[float, float], shape: TreeShape | None
) -> dict[str, Gain]:
    import torch

    depth = (shape or default_tree_shape(torch.device("cpu"), report.trimmed_rows)).depth
    params = report.params, report.trimmed_params
    named = zip((WHOLE, TRIMMED), params, accept_lengths, strict=True)
    return {name: _gain(head, weights, accept_length, depth) for name, weights, accept_length in named}


def _measured_gains(
    head: DraftHead,
    report: TrimReport,
    out: Path,
    target: str,
    shape: TreeShape | None,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    dtype: str | None,
    device: str | None,
) -> dict[str, Gain]:
    """Both drafts on the same prompts and tree in turn, greedy."""
    from nanospec.decode import SpeculativeDecoder

    with busy("loading"):
        options: dict[str, Any] = {"vocab": "full", "dtype": dtype, "device": device}
        # Trimmed first: its fewer rows bound the tree.
        trimmed = SpeculativeDecoder.from_pretrained(target, out, tree=shape, **options)
        whole = SpeculativeDecoder.from_pretrained(target, head.directory, tree=trimmed.tree, **options)
    encoded = encode_prompts(trimmed, prompts)
    runners = {WHOLE: whole.generate, TRIMMED: trimmed.generate}
    with progress_bar("measuring", len(runners) * (1 + len(encoded)), "runs") as advance:
        results = timed_runs(runners, encoded, max_new_tokens, advance)
    params = {WHOLE: report.params, TRIMMED: report.trimmed_params}
    return {name: _gain(head, params[name], *_pooled(runs, trimmed.tree.depth)) for name, runs in results.items()}


def _pooled(results: Sequence[GenerationResult], depth: int) -> tuple[float, int, float]:
    """Accept length, passes of the draft per step, tokens/s over all prompts."""
    stats = [result.stats for result in results]
    steps = sum(one.steps for one in stats)
    if not steps:
        raise ValueError("prompts must lead to more than one token each to be measured, got none that does")
    seconds = sum(one.decode_seconds for one in stats)
    return sum(one.step_tokens for one in stats) / steps, depth, sum(one.new_tokens - 1 for one in stats) / seconds
