"""`nanospec train-router`: learns which clusters of head rows a draft's states need, for `--vocab routed:FILE`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from nanospec.cli.errors import one_line_errors
from nanospec.cli.options import (
    DebugOption,
    DeviceOption,
    DraftOption,
    DtypeOption,
    JsonOption,
    TargetOption,
    load_decoder,
)
from nanospec.cli.progress import busy, progress_bar

if TYPE_CHECKING:
    from nanospec.decode import SpeculativeDecoder
    from nanospec.training.router_examples import ExampleReader, RouterExamples
    from nanospec.training.train_router import RouterSettings

NUM_TOP = 4  # of the target's best ids after a state, whose clusters are wanted
NUM_DRAFT = 8  # of the drafter's own best rows, whose recall is reported
HELD_OUT_SHARE = 20  # one record in so many, without a file of held-out text
STATES_PER_RECORD = 40  # fewer than most records give
HELD_OUT_STATES = 4000


def train_router(
    corpus: Annotated[Path, typer.Option(help="JSON lines with prompt and response, .jsonl or .jsonl.xz.")],
    out: Annotated[Path, typer.Option(help="Where the router is written: a .safetensors file.")],
    target: TargetOption = None,
    draft: DraftOption = None,
    heldout: Annotated[
        Path | None, typer.Option(help="Text to report recall on. Default: a twentieth of the corpus, not learnt from.")
    ] = None,
    rows: Annotated[
        str, typer.Option(metavar="N|N,N,..", help="Rows per tree level, as routed:FILE will draft.")
    ] = "2048,1024",
    num_states: Annotated[int, typer.Option(help="States of the drafter to learn from.")] = 150_000,
    num_clusters: Annotated[int | None, typer.Option(help="Clusters of head rows. Default: one for 64 rows.")] = None,
    hidden_size: Annotated[int, typer.Option(help="Width of the classifier.")] = 128,
    levels: Annotated[int, typer.Option(help="Levels of the trees whose states are learnt from.")] = 5,
    ahead: Annotated[
        bool, typer.Option("--ahead", help="For a GPU: learn as well to pick beside the draft's layer, not after it.")
    ] = False,
    seed: Annotated[int, typer.Option(help="The same seed makes the same router.")] = 0,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Train the router of a draft vocabulary: minutes on a CPU for the embedded pair."""
    with one_line_errors(debug):
        from nanospec.training.train_router import RouterSettings
        from nanospec.vocab.routed import parse_rows
        from nanospec.vocab.router_file import checked_router_path

        checked_router_path(out)
        if min(num_states, levels) < 1:
            raise ValueError(f"--num-states and --levels must be at least 1, got {num_states} and {levels}")
        num_rows = parse_rows(rows)
        if ahead and levels < 2:
            raise ValueError(f"--levels must be at least 2 with --ahead, got {levels}")
        settings = RouterSettings(num_clusters, hidden_size, seed=seed, looks_ahead=ahead)
        decoder = load_decoder(target, draft, vocab="full", tree=None, dtype=dtype, device=device)
        report = _train(decoder, corpus, heldout, out, num_rows, (num_states, levels), settings)
        if json_output:
            typer.echo(json.dumps(report, indent=2))
            return
        typer.echo(f"{out}: {report['clusters']} clusters, hidden size {hidden_size}, {report['states']:,} states")
        Console().print(*recall_tables(report["recall"]))


def _train(
    decoder: SpeculativeDecoder,
    corpus: Path,
    heldout: Path | None,
    out: Path,
    num_rows: tuple[int, ...],
    amount: tuple[int, int],
    settings: RouterSettings,
) -> dict[str, Any]:
    """Reads examples, trains, writes the file; the report that it holds. amount: states, levels."""
    from nanospec.drafters.drafter import deepest_tree
    from nanospec.training.router_examples import ExampleReader, head_of
    from nanospec.training.router_recall import recall_ahead, recall_report
    from nanospec.training.train_router import num_training_steps, train_router, wanted_counts
    from nanospec.tree_growers import model_of
    from nanospec.vocab.routed import check_rows, for_levels
    from nanospec.vocab.router_file import write_router

    target, drafter, (num_states, levels) = decoder.target, model_of(decoder.drafter), amount
    head = head_of(drafter, target).weight
    check_rows(num_rows, head.shape[0])
    settings.validated(head.shape[0])
    levels = min(levels, deepest_tree(drafter) or levels)
    records, held_out = _records(corpus, heldout, num_states, settings.seed)
    reader = ExampleReader(target, drafter, levels, min(NUM_TOP, target.vocab_size))
    examples = _read(decoder, reader, records, num_states // levels, "drafting along the text")
    reader.num_draft = min(NUM_DRAFT, head.shape[0])
    tested = _read(decoder, reader, held_out, HELD_OUT_STATES // levels, "drafting along held-out text")
    with progress_bar("training", num_training_steps(examples, settings), "steps") as advance:
        router = train_router(head, examples, settings, advance)
    recall = recall_report(router, wanted_counts(examples, head.shape[0]), tested)
    report = {
        "clusters": router.num_clusters,
        "states": examples.next_pos.numel(),
        "levels": levels,
        "drafter": drafter.name,
        **settings._asdict(),
        "held_out": "a part of the corpus" if heldout is None else heldout.name,
        "recall": recall | recall_ahead(router, head.detach().cpu(), tested, recall["rows"]),
    }
    write_router(out, router, for_levels(num_rows, levels), report)
    return report


def _records(corpus: Path, heldout: Path | None, num_states: int, seed: int) -> tuple[list[dict], list[dict]]:
    """To learn from, and to report recall on: more than will be read."""
    from nanospec.training.router_examples import sample_records

    with busy("reading text"):
        records = sample_records(corpus, max(num_states // STATES_PER_RECORD, 2 * HELD_OUT_SHARE), seed)
        if heldout is not None:
            return records, sample_records(heldout, HELD_OUT_STATES // STATES_PER_RECORD, seed)
    return [r for i, r in enumerate(records) if i % HELD_OUT_SHARE], records[::HELD_OUT_SHARE]


def _read(
    decoder: SpeculativeDecoder, reader: ExampleReader, records: list[dict], num_chains: int, label: str
) -> RouterExamples:
    from nanospec.training.router_examples import documents

    texts = documents(records, decoder.encode, decoder.tokenizer)
    with progress_bar(label, max(num_chains, 1), "chains") as advance:
        return reader.read(texts, max(num_chains, 1), advance)


def recall_tables(recall: dict[str, Any]) -> list[Table]:
    """Recall by rows: the router's shortlists beside the rows wanted most often; then the router's by level."""
    kinds = [kind for kind in ("target", "draft") if kind in recall]
    names = {"target": "target's first choice", "draft": f"draft's {NUM_DRAFT} best"}
    overall = Table(title=f"recall on {recall['states']:,} held-out states, each with a shortlist of its own")
    overall.add_column("rows", justify="right")
    for kind in kinds:
        overall.add_column(names[kind], justify="right")
        overall.add_column("in the most frequent", justify="right")
    for kind in kinds:
        if f"{kind}_ahead" in recall:
            overall.add_column(f"{names[kind]}, looking ahead", justify="right")
    by_level = Table(title="the target's first choice, by level")
    by_level.add_column("rows", justify="right")
    for level in range(len(recall["target"]["by_level"][0])):
        by_level.add_column(str(level + 1), justify="right")
    for index, rows in enumerate(recall["rows"]):
        columns = [column for kind in kinds for column in (kind, f"{kind}_frequent")]
        columns += [f"{kind}_ahead" for kind in kinds if f"{kind}_ahead" in recall]
        overall.add_row(f"{rows:,}", *(f"{recall[column]['all'][index]:.1%}" for column in columns))
        by_level.add_row(f"{rows:,}", *(f"{share:.1%}" for share in recall["target"]["by_level"][index]))
    return [overall, by_level]
