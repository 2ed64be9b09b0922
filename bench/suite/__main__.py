"""Our engine and its peers side by side: python -m bench.suite --prompts DIR --out DIR

The same prompts, weights, dtype and threads, interleaved prompt by prompt: plain decoding, transformers' greedy,
assisted and prompt-lookup generation, our engine with every draft vocabulary, and vLLM with and without our plugin in
processes of its own. Each row runs in its own best ordinary configuration; the report says which. Every answer is held
against plain decoding's before a figure counts:
exit status 1 for tokens that rounding does not explain. A run that was ended is continued by the same command.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.gpu.report import write_text
from bench.suite.contenders import OWN_TREES, Contenders
from bench.suite.locality import watch
from bench.suite.measuring import check_answers, measure, num_runs, results_of
from bench.suite.plots import SPEEDUP, draw_all
from bench.suite.prompts import PromptSet, drawn_order, read_prompt_set
from bench.suite.report import as_markdown, build_rows, describe_difference, headline
from bench.suite.rows import BY_NAME, VLLM_ROWS, LeftOut, Row, choose_rows
from bench.suite.vllm_peers import VllmPeers, describe_environment, pair_of, what_lacks
from nanospec.cli.errors import one_line_errors
from nanospec.cli.machine import describe_machine
from nanospec.cli.measure import AUTOREGRESSIVE, Difference
from nanospec.cli.options import DebugOption, DeviceOption, DtypeOption, load_decoder
from nanospec.cli.progress import progress_bar
from nanospec.coverage.pareto_plot import check_plot_path
from nanospec.coverage.state_file import StateFile
from nanospec.decode import SpeculativeDecoder
from nanospec.demo import DRAFT_DIRECTORIES
from nanospec.result import GenerationResult
from nanospec.tree_shape import TreeShape

JSON_NAME, MARKDOWN_NAME, STATE_NAME = "suite.json", "suite.md", "state.jsonl"
EXIT_WRONG_RESULT = 1
LOCALITY_ROW, LOCALITY_TOKENS = "in-context", 192
MOST_DRAFTED = 64  # room behind the answer that a tree, a chain or an assistant may write to

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Directory for the report; a run that it holds is continued.")],
    prompts: Annotated[
        list[Path] | None,
        typer.Option(
            help="Directory with question.jsonl or human_eval.jsonl, or a file; repeatable. Default: our own."
        ),
    ] = None,
    per_task: Annotated[int, typer.Option(help="Prompts of every task, evenly spread; 0: all.")] = 20,
    max_new_tokens: Annotated[int, typer.Option(help="Of every answer, whatever it says.")] = 64,
    row: Annotated[list[str] | None, typer.Option(metavar="NAME", help=f"Repeatable. Of {', '.join(BY_NAME)}.")] = None,
    target: Annotated[str | None, typer.Option(help="Path or hub id. Default: the embedded pair.")] = None,
    draft: Annotated[str | None, typer.Option(help="Draft of that target.")] = None,
    eagle3: Annotated[str | None, typer.Option(help="EAGLE-3 draft of the same target. Embedded: its own.")] = None,
    medusa: Annotated[str | None, typer.Option(help="Medusa heads of the same target. Embedded: its own.")] = None,
    assistant: Annotated[str | None, typer.Option(help="Small language model with the target's tokenizer.")] = None,
    router: Annotated[
        str | None, typer.Option(metavar="FILE[:ROWS]", help="Router of `nanospec train-router`.")
    ] = None,
    trim_list: Annotated[
        str | None, typer.Option(help="Ids to draft, a list of `nanospec calibrate` or a trimmed draft.")
    ] = None,
    vllm: Annotated[
        str | None,
        typer.Option(metavar="PYTHON", help="Interpreter of an environment with vLLM and nanospec, for vLLM's rows."),
    ] = None,
    tree: Annotated[
        str,
        typer.Option(
            metavar="auto|shared|DEPTH,BRANCHING,NODES",
            help="auto: measured for every row; shared: with in-context, one for all rows of a drafter, but vLLM's.",
        ),
    ] = OWN_TREES,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="As SVG and PNG.")] = True,
    debug: DebugOption = False,
) -> None:
    """Measure every row on every prompt, and report medians with 95 % intervals per task and over all."""
    options = {"assistant": assistant, "router": router, "trim-list": trim_list, "vllm": vllm}
    for name, path in (("eagle3", eagle3), ("medusa", medusa)):
        options[name] = str(DRAFT_DIRECTORIES[name]) if path is None and target is None else path
    with one_line_errors(debug), ExitStack() as stack:
        if plots:
            check_plot_path(out / f"{SPEEDUP}.svg")
        if max_new_tokens < 2:
            raise ValueError(f"max-new-tokens must be at least 2, got {max_new_tokens}")
        decoder = load_decoder(target, draft, vocab="full", tree=None, dtype=dtype, device=device)
        read = read_prompt_set(decoder, prompts or [], per_task or None, max_new_tokens + MOST_DRAFTED)
        num_positions = read.longest + max_new_tokens + MOST_DRAFTED
        peers, reasons = _vllm_peers(vllm, decoder, (target, draft), num_positions, out)
        contenders = Contenders(decoder, options, tree, peers)
        stack.callback(contenders.close)
        chosen, left_out = choose_rows(row or (), options, decoder, reasons)
        contenders.check(chosen)
        machine = describe_machine(decoder.target.device, decoder.target.dtype)
        decides = {
            "pair": (target, draft), **options, "asked_tree": tree, "rows": chosen, "max_new_tokens": max_new_tokens,
            "texts": _digest(read), "machine": machine, "vllm_environment": peers and peers.environment,
        }  # fmt: skip
        state = StateFile(out / STATE_NAME, decides, key="run")
        trees = _find_trees(contenders, chosen, state)
        differences = _run(contenders, chosen, trees, read, max_new_tokens, state)
        report: dict[str, Any] = {
            "command": shlex.join(["python", "-m", "bench.suite", *sys.argv[1:]]),
            "machine": machine,
            "prompts": {"tasks": read.tasks, "too_long": read.too_long, "max_new_tokens": max_new_tokens},
            "rows": build_rows([row.name for row in chosen], [p.task for p in read.prompts], state, trees, differences),
            "left_out": [left._asdict() for left in left_out],
            "differences": [difference._asdict() for difference in differences],
            "locality": _locality(contenders, chosen, trees, read, state),
            "vllm": peers and _describe_vllm(peers, chosen, trees),
        }
        _write(report, out, plots)
        _announce(report, left_out)
    if not all(row["is_right"] for row in report["rows"]):
        raise typer.Exit(EXIT_WRONG_RESULT)


def _vllm_peers(
    python: str | None, decoder: SpeculativeDecoder, pair: tuple[str | None, str | None], num_positions: int, out: Path
) -> tuple[VllmPeers | None, dict[str, str]]:
    """vLLM's rows where there is an interpreter for them, and why some of them cannot take part."""
    if python is None:
        return None, {}
    environment, directories = describe_environment(python), pair_of(decoder, *pair)
    peers = VllmPeers(environment, directories, decoder.target.dtype, num_positions, out)
    return peers, what_lacks(environment, directories, decoder)


def _describe_vllm(peers: VllmPeers, rows: Sequence[Row], trees: dict[str, TreeShape]) -> dict[str, Any]:
    names = [row.name for row in rows if row.name in VLLM_ROWS]
    depths = {name: trees[name].depth if name in trees else None for name in names}
    settings = {name: peers.settings(name, depth) for name, depth in depths.items()}
    return {"versions": peers.environment.versions, "preload": peers.environment.preload, "rows": settings}


def _find_trees(contenders: Contenders, rows: Sequence[Row], state: StateFile) -> dict[str, TreeShape]:
    """As a run that is continued has found them."""
    if "trees" not in state.records:
        state.add({"run": "trees", "trees": contenders.find_trees(rows)})
    return {name: TreeShape(*shape) for name, shape in state.records["trees"]["trees"].items()}


def _run(
    contenders: Contenders,
    rows: Sequence[Row],
    trees: dict[str, TreeShape],
    read: PromptSet,
    max_new_tokens: int,
    state: StateFile,
) -> list[Difference]:
    """Measures what is missing, then checks the answers; says at once what is wrong."""
    order = drawn_order(len(read.prompts))

    def rerun(number: int) -> GenerationResult:
        return contenders.plain(read.prompts[number].input_ids, max_new_tokens, return_candidates=True)

    decoding = contenders.build(rows, trees)
    with progress_bar("measuring", num_runs(len(rows), len(order)), "runs") as advance:
        measure(decoding, read.prompts, order, max_new_tokens, state, advance)
    differences = check_answers(list(decoding), order, state, rerun, contenders.decoder.target.dtype)
    for difference in differences:
        if not difference.near_tie:
            typer.echo(describe_difference(difference, read.prompts[difference.prompt].task), err=True)
    return differences


def _locality(
    contenders: Contenders, rows: Sequence[Row], trees: dict[str, TreeShape], read: PromptSet, state: StateFile
) -> dict[str, Any] | None:
    """One longer generation of the in-context row, watched, behind the prompt whose answer has most different ids; None
    without that row."""
    watched = next((row for row in rows if row.name == LOCALITY_ROW), None)
    if watched is None:
        return None
    if "locality" not in state.records:
        decoder: SpeculativeDecoder = contenders.speculative(watched, trees[watched.name])
        answers = results_of(AUTOREGRESSIVE, range(len(read.prompts)), state)
        number = max(range(len(answers)), key=lambda number: len(set(answers[number].token_ids)))
        prompt = read.prompts[number]
        state.add({"run": "locality", "task": prompt.task, **watch(decoder, prompt.input_ids, LOCALITY_TOKENS)})
    return state.records["locality"]


def _write(report: dict[str, Any], out: Path, plots: bool) -> None:
    write_text(out / JSON_NAME, json.dumps(report, indent=2) + "\n")
    write_text(out / MARKDOWN_NAME, as_markdown(report))
    if plots:
        draw_all(report, out)


def _announce(report: dict[str, Any], left_out: Sequence[LeftOut]) -> None:
    typer.echo("\n".join(headline(report)))
    for name, reason in left_out:
        typer.echo(f"left out {name}: {reason}", err=True)


def _digest(read: PromptSet) -> str:
    content = [(prompt.task, prompt.input_ids[0].tolist()) for prompt in read.prompts]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


if __name__ == "__main__":
    app()
