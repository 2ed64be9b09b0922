"""`nanospec coverage`: every draft vocabulary on the same contexts, one speculative step each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanospec.cli.errors import one_line_errors
from nanospec.cli.options import (
    DebugOption,
    DeviceOption,
    DraftOption,
    DraftTemperatureOption,
    DtypeOption,
    JsonOption,
    NumTopOption,
    TargetOption,
    TreeOption,
    load_decoder,
)
from nanospec.cli.progress import progress_bar

if TYPE_CHECKING:
    from nanospec.coverage.documents import TextDocument
    from nanospec.coverage.policy import Policy, PolicyProbe
    from nanospec.coverage.run import RunSettings
    from nanospec.decode import SpeculativeDecoder

VOCABS = (
    "full",
    "full,temperature=0.5",
    "full+prior",
    "static:1024",
    "static:4096",
    "static:16384",
    "static:32768",
    "context-only",
    "extension-only",
    "in-context,num_top=3",
    "in-context,num_top=8",
    "in-context",
    "hybrid:512",
    "hybrid:1024",
    "hybrid:512+prior",
    "hybrid:1024+prior",
)
COVERAGE_METAVAR = "VOCAB[,num_top=N][,capacity=N][,temperature=X]"


def coverage(
    prompts: Annotated[
        list[Path] | None,
        typer.Option(
            help="JSON lines, plain or .xz: `prompt` or `turns`, maybe `response`, `category`. Repeatable. "
            "Default: the built-in prompts."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="So many documents, drawn at random.")] = None,
    cuts: Annotated[int, typer.Option(help="Contexts per document, cut at random places of the response.")] = 1,
    vocab: Annotated[
        list[str] | None, typer.Option(metavar=COVERAGE_METAVAR, help=f"Repeatable. Default: {' '.join(VOCABS)}.")
    ] = None,
    sampled: Annotated[
        bool, typer.Option("--sampled", help="The target goes on at temperature 1, not greedily.")
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option(help="Of the response that the target samples for a prompt without one.")
    ] = 128,
    seed: Annotated[int, typer.Option(help="Of documents, cuts and sampling.")] = 0,
    resume: Annotated[
        Path | None, typer.Option(help="File that keeps what is done, and is continued where it exists.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Accept length against rows, as .svg or .png.")] = None,
    target: TargetOption = None,
    draft: DraftOption = None,
    tree: TreeOption = None,
    num_top: NumTopOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    draft_temperature: DraftTemperatureOption = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure what each draft vocabulary holds and what its trees are worth, relative to EAGLE-2's full vocabulary."""
    with one_line_errors(debug):
        from nanospec.cli.documents import BUILT_IN_PROMPTS, read_documents
        from nanospec.coverage.pareto_plot import check_plot_path, draw_pareto
        from nanospec.coverage.policy import list_policies
        from nanospec.coverage.run import RunSettings

        if plot is not None:
            check_plot_path(plot)
        for name, value in (("cuts", cuts), ("max-new-tokens", max_new_tokens)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        policies = list_policies(tuple(vocab) if vocab else VOCABS)
        documents = read_documents(prompts or [BUILT_IN_PROMPTS], limit, seed)
        options: dict[str, Any] = {"dtype": dtype, "device": device, "num_top": num_top, "cuda_graph": False}
        decoder = load_decoder(target, draft, vocab="full", tree=tree, draft_temperature=draft_temperature, **options)
        settings = RunSettings(cuts, sampled, max_new_tokens, seed)
        found = run_coverage(decoder, policies, documents, settings, resume, (target, draft), leave_out=not vocab)
        files = [path.name for path in prompts] if prompts else ["demo"]
        found["prompts"] = {"files": files, "limit": limit, **found["prompts"]}
        if plot is not None:
            draw_pareto(found["rows"], plot)
        _show(found, json_output)


def run_coverage(
    decoder: SpeculativeDecoder,
    policies: Sequence[Policy],
    documents: Sequence[TextDocument],
    settings: RunSettings,
    resume: Path | None,
    pair: tuple[str | None, str | None],
    leave_out: bool,
) -> dict[str, Any]:
    """The object that `--json` prints, but for the names of files. Raises as the parts do."""
    from nanospec.cli.machine import describe_machine, dtype_name
    from nanospec.coverage.figures import build_rows
    from nanospec.coverage.run import measure_documents
    from nanospec.coverage.state_file import StateFile

    probes = build_probes(decoder, policies, settings.is_sampled, leave_out)
    described = [describe_policy(decoder, probe) for probe in probes]
    decides = {
        "policies": described,
        "tree": decoder.tree._asdict(),
        "pair": pair,
        "dtype": dtype_name(decoder.target.dtype),
        "documents": len(documents),
        "texts": hashlib.sha256(json.dumps(documents).encode()).hexdigest(),
        **settings._asdict(),
    }
    state = StateFile(resume, decides)
    with progress_bar("measuring", len(documents), "documents") as advance:
        records = measure_documents(decoder, probes, documents, settings, state, advance)
    return {
        "rows": build_rows(records, described),
        "tree": decoder.tree._asdict(),
        "prompts": {
            "documents": len(documents),
            "too_long": sum(record["contexts"] is None for record in records),
            "contexts": sum(len(record["contexts"] or ()) for record in records),
            **settings._asdict(),
        },
        "machine": describe_machine(decoder.target.device, decoder.target.dtype),
    }


def build_probes(
    decoder: SpeculativeDecoder, policies: Sequence[Policy], is_sampled: bool, leave_out: bool
) -> list[PolicyProbe]:
    """A probe per policy. With `leave_out`, a list of ids that the pair lacks costs its row and a line on stderr."""
    from nanospec.coverage.policy import EAGLE2_TEMPERATURE, PolicyProbe
    from nanospec.decode import GREEDY_DRAFT_TEMPERATURE

    temperature = EAGLE2_TEMPERATURE if is_sampled else GREEDY_DRAFT_TEMPERATURE
    probes = []
    for policy in policies:
        try:
            probes.append(PolicyProbe(decoder, policy, temperature))
        except ValueError as error:
            if not (leave_out and policy.vocab.startswith(("static:", "hybrid:"))):
                raise
            typer.echo(f"left out {policy.name}: {error}", err=True)
    return probes


def describe_policy(decoder: SpeculativeDecoder, probe: PolicyProbe) -> dict[str, Any]:
    """What a row says of its policy, beside the figures."""
    from nanospec.coverage.policy import row_name

    policy = probe.policy
    return {
        "vocab": row_name(policy),
        "spec": policy.vocab,
        "num_top": probe.num_top,
        "capacity": decoder.capacity if policy.capacity is None else policy.capacity,
        "draft_temperature": probe.temperature,
        "asked_temperature": policy.temperature,
    }


def _show(found: dict[str, Any], json_output: bool) -> None:
    from nanospec.cli.coverage_table import print_coverage

    if json_output:
        typer.echo(json.dumps(found, indent=2))
        return
    prompts = found["prompts"]
    skipped = f"; {prompts['too_long']} prompts are too long for the target" if prompts["too_long"] else ""
    typer.echo(f"{prompts['contexts']:,} contexts of {prompts['documents']:,} documents{skipped}")
    print_coverage(found["rows"])
