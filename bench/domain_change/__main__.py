"""Accept length around a change of language or domain: `python -m bench.domain_change --corpus FILE --out DIR`.

Conversations are glued from held-out texts: one of the old domain, then the new one. At one random place of every bin
around the change each policy drafts one tree behind the text so far, against the target's own greedy continuation, as
`nanospec coverage` does. Every switch has a place in every bin, so that the bins differ in nothing else.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.domain_change.report import RECOVERED, STEADY_FROM, Drafted, draw_changes, summarize
from bench.domain_change.switches import EDGES, Domain, Switch, find_domain, glue
from nanospec.cli.coverage import COVERAGE_METAVAR, build_probes
from nanospec.cli.documents import read_documents
from nanospec.cli.errors import one_line_errors
from nanospec.cli.machine import describe_machine, dtype_name
from nanospec.cli.options import DtypeOption, TreeOption, load_decoder
from nanospec.cli.progress import progress_bar
from nanospec.coverage.pareto_plot import check_plot_path
from nanospec.coverage.policy import PolicyProbe, list_policies, row_name
from nanospec.coverage.run import measure_cuts
from nanospec.coverage.state_file import StateFile
from nanospec.sampling import SamplingParams

if TYPE_CHECKING:
    from nanospec.decode import SpeculativeDecoder

JSON_NAME, PLOT_NAME, STATE_NAME = "domain_change.json", "domain_change.svg", "state.jsonl"
VOCABS = ("full,temperature=0.5", "full+prior", "static:4096", "in-context", "hybrid:1024", "hybrid:1024+prior")
NEW_DOMAINS = ("code", "translation:to German")
DRAWS_PER_SWITCH = 20  # conversations that do not fit are drawn anew, so often
NUMBERS_PER_DOMAIN = 1_000_000


def main(
    corpus: Annotated[Path, typer.Option(help="JSON lines with prompt, response and category, plain or .xz.")],
    out: Annotated[Path, typer.Option(help="Directory for the figures; a run that it holds is continued.")],
    old: Annotated[str, typer.Option(metavar="CATEGORY[:WORDS]", help="The domain before the change.")] = "chat",
    new: Annotated[
        list[str] | None, typer.Option(metavar="CATEGORY[:WORDS]", help=f"Default: {', '.join(NEW_DOMAINS)}.")
    ] = None,
    turn: Annotated[
        bool, typer.Option("--turn/--text", help="The change comes with the user's next turn, or within a response.")
    ] = True,
    switches: Annotated[int, typer.Option(help="Conversations per new domain.")] = 200,
    vocab: Annotated[list[str] | None, typer.Option(metavar=COVERAGE_METAVAR)] = None,
    target: Annotated[str | None, typer.Option(help="Path or hub id. Default: the embedded pair.")] = None,
    draft: Annotated[str | None, typer.Option(help="Draft of that target.")] = None,
    tree: TreeOption = None,
    dtype: DtypeOption = None,
    seed: int = 0,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Measure how soon each draft vocabulary is back at its steady accept length."""
    with one_line_errors(debug):
        check_plot_path(out / PLOT_NAME)
        if switches < 1:
            raise ValueError(f"switches must be at least 1, got {switches}")
        policies = list_policies(vocab or list(VOCABS))
        documents = read_documents([corpus])
        before, after = find_domain(old, documents), [find_domain(name, documents) for name in new or NEW_DOMAINS]
        decoder = load_decoder(target, draft, vocab="full", tree=tree, dtype=dtype, cuda_graph=False)
        probes = build_probes(decoder, policies, is_sampled=False, leave_out=not vocab)
        texts = hashlib.sha256(json.dumps([before, *after]).encode()).hexdigest()
        decides = {"texts": texts, "pair": (target, draft), "turn": turn, "edges": EDGES, "seed": seed}
        decides |= {"policies": [probe.policy for probe in probes], "tree": decoder.tree}
        state = StateFile(out / STATE_NAME, decides | {"dtype": dtype_name(decoder.target.dtype)})
        changes = {
            f"{old} -> {domain.name}": _measure(decoder, probes, before, domain, place, turn, switches, seed, state)
            for place, domain in enumerate(after)
        }
        about = {"switches": switches, "turn": turn, "seed": seed, "tree": decoder.tree._asdict()}
        machine = describe_machine(decoder.target.device, decoder.target.dtype)
        _write(out, {"changes": changes, **about, "machine": machine})
    _print(changes)


def _write(out: Path, report: dict[str, Any]) -> None:
    draw_changes(report["changes"], out / PLOT_NAME)
    partial = out / f"{JSON_NAME}.partial"
    partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    partial.replace(out / JSON_NAME)


def _measure(
    decoder: SpeculativeDecoder,
    probes: list[PolicyProbe],
    old: Domain,
    new: Domain,
    place: int,
    is_turn: bool,
    num_switches: int,
    seed: int,
    state: StateFile,
) -> dict[str, Any]:
    """Summary of one change, over the first `num_switches` draws that fit.

    A record: document (a number over all changes and their draws) and bins {first token: [Measurement of every
    policy]}, None for a draw that does not fit. Raises ValueError where too few fit.
    """
    room, records = decoder.target.context_window - decoder.tree.depth - 2, []
    if decoder.tokenizer is None:
        raise ValueError("target must come with a tokenizer to read text, got none")
    with progress_bar(new.name, num_switches, "switches") as advance:
        for draw in range(num_switches * DRAWS_PER_SWITCH):
            number = place * NUMBERS_PER_DOMAIN + draw
            if number not in state.records:
                switch = glue(decoder.tokenizer, old, new, is_turn, room, [seed, place, draw])
                bins = None if switch is None else _measure_switch(decoder, probes, switch)
                state.add({"document": number, "bins": bins})
            if state.records[number]["bins"] is not None:
                records.append(state.records[number])
                advance()
            if len(records) == num_switches:
                return summarize(records, [_drafted(probe) for probe in probes])
    raise ValueError(f"new domain {new.name!r} must give {num_switches} conversations that fit, got {len(records)}")


def _drafted(probe: PolicyProbe) -> Drafted:
    return Drafted(row_name(probe.policy), probe.policy.vocab, probe.temperature)


def _measure_switch(
    decoder: SpeculativeDecoder, probes: list[PolicyProbe], switch: Switch
) -> dict[int, list[dict[str, Any]]]:
    """Measurements of all policies by the first token of each bin."""
    token_ids, cuts = switch.token_ids.to(decoder.target.device), list(switch.cuts.values())
    measured = measure_cuts(decoder, probes, token_ids, cuts, SamplingParams())
    return {
        first: [measurement._asdict() for measurement in measured[cut].policies] for first, cut in switch.cuts.items()
    }


def _print(changes: dict[str, Any]) -> None:
    for name, policies in changes.items():
        typer.echo(f"{name}: accept length by tokens since the change, steady from {STEADY_FROM}")
        for policy, summary in policies.items():
            levels = " ".join(f"{part['from_token']}:{part['accept_length']:.2f}" for part in summary["bins"])
            after, short = summary["recovered_after"], summary["surely_short_until"]
            typer.echo(
                f"  {policy:24} {levels} steady {summary['steady']['accept_length']:.2f}; {RECOVERED:.0%} of it after "
                f"{after['of_steady']} tokens (surely less until {short['of_steady']}), over {summary['twin']} after "
                f"{after['vs_twin_of_steady']} ({short['vs_twin_of_steady']})"
            )


if __name__ == "__main__":
    typer.run(main)
