"""python -m bench.real_shapes --out DIR"""

from __future__ import annotations

import importlib.util
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from bench.gpu.deadline import Deadline
from bench.real_shapes.auto_tree import choose_tree
from bench.real_shapes.growth import AXES, Sweep, draw_growth
from bench.real_shapes.pair import CPU, DTYPE, RandomPair, rows_of_sides
from bench.real_shapes.report import JSON_NAME, MARKDOWN_NAME, worst_errors, write_report
from bench.real_shapes.sizes import ACCEPT_LENGTHS, HYBRID, SIZES, RealSizes
from bench.real_shapes.stages import PLAIN, STEP, TARGET, measure_drafts, measure_steps, measure_target, rates
from nanospec.cli.errors import one_line_errors
from nanospec.cli.machine import describe_machine
from nanospec.decode import SpeculativeDecoder
from nanospec.planning.calibrate import measure_cpu
from nanospec.planning.random_decoder import SMALL, random_decoder
from nanospec.planning.step_cost import step_cost
from nanospec.tree_shape import TreeShape, parse_tree_shape

AUTO = "auto"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Directory for the JSON object, the tables and the plots.")],
    shapes: Annotated[str, typer.Option(metavar="|".join(SIZES), help="tiny is for trying it out.")] = "real",
    tree: Annotated[
        str,
        typer.Option(metavar="auto|DEPTH,BRANCHING,NODES", help="auto: as tree='auto' picks it, see the table."),
    ] = AUTO,
    growth: Annotated[bool, typer.Option("--growth/--no-growth", help="Sweep V, K, batch and context too.")] = True,
    limit_s: Annotated[float, typer.Option(help="Seconds after which no further sweep is started.")] = 420,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Time real shapes with random weights on a CPU, and hold what the cost model predicts against it."""
    with one_line_errors(debug):
        if shapes not in SIZES:
            raise ValueError(f"shapes must be one of {', '.join(SIZES)}, got {shapes!r}")
        if limit_s <= 0:
            raise ValueError(f"limit-s must be above 0, got {limit_s:g}")
        shape = None if tree == AUTO else parse_tree_shape(tree)
        deadline = Deadline(limit_s)
        report = _new_report(SIZES[shapes])
        for size in SIZES[shapes].pairs:
            pair = RandomPair.of(size)
            report["pairs"][size.name] = _measure_pair(pair, SIZES[shapes], shape, shapes == "real")
            write_report(out, report)
            del pair  # before the next one is made
        if growth:
            _sweep(RandomPair.of(SIZES[shapes].growth_pair), SIZES[shapes], report, deadline, out)
        report["seconds"] = round(deadline.spent_s, 1)
        write_report(out, report)
        typer.echo(f"{out / JSON_NAME} and {out / MARKDOWN_NAME} in {deadline.spent_s:.0f} s")


def _new_report(sizes: RealSizes) -> dict[str, Any]:
    return {
        "machine": describe_machine(CPU, DTYPE),
        "command": shlex.join(["python", "-m", "bench.real_shapes", *sys.argv[1:]]),
        "context_length": sizes.context_length,
        "settings": asdict(sizes),
        "pairs": {},
        "growth": {},
        "plots": [],
        "skipped": {},
    }


def _measure_pair(pair: RandomPair, sizes: RealSizes, tree: TreeShape | None, is_real: bool) -> dict[str, Any]:
    device = measure_cpu(sizes.effort)
    source = "given"
    if tree is None:
        accepting = SpeculativeDecoder.from_demo(vocab="in-context") if is_real else _small_accepting()
        tree = choose_tree(accepting, pair, sizes, device)
        source = "tree='auto' with this pair's costs and the nodes that the embedded pair accepts on three prompts"
    with torch.inference_mode():
        stages = measure_drafts(pair, sizes, tree, device)
        stages[TARGET] = measure_target(pair, sizes, tree, device)
        stages |= measure_steps(pair, sizes, tree, device)
    again = pair.expected_on(measure_cpu(sizes.effort), tree, sizes.context_length)
    before = pair.expected_on(device, tree, sizes.context_length)
    rows = rows_of_sides(sizes, pair.target_sizes.num_ids)[HYBRID]
    return {
        "drift": round(step_cost(again, rows).step / step_cost(before, rows).step, 4),
        "tree": list(tree),
        "tree_source": source,
        "device": asdict(device),
        "stages": stages,
        "worst_errors": worst_errors(stages),
        "tokens_per_s": rates(stages[STEP], stages[TARGET][PLAIN], ACCEPT_LENGTHS),
    }


def _small_accepting() -> SpeculativeDecoder:
    return random_decoder(SMALL._replace(num_layers=1, tree=TreeShape(2, 4, 8)))


def _sweep(pair: RandomPair, sizes: RealSizes, report: dict[str, Any], deadline: Deadline, out: Path) -> None:
    """All sweeps that fit into the time; the others are named."""
    measured = report["pairs"][pair.size.name]
    sweep = Sweep(pair, sizes, TreeShape(*measured["tree"]), measure_cpu(sizes.effort))
    parts = {
        "vocab_size": sweep.vocab_sizes,
        "draft_size": sweep.draft_sizes,
        "batch_size": sweep.batch_sizes,
        "context_length": sweep.context_lengths,
    }
    assert parts.keys() == AXES.keys(), "every sweep has an axis"
    for name, measure in parts.items():
        refusal = deadline.refusal(0.0)
        if refusal is not None:
            report["skipped"][name] = refusal
            continue
        report["growth"][name] = measure()
        if importlib.util.find_spec("matplotlib") is not None:
            report["plots"] += draw_growth(out, name, report["growth"][name])
        write_report(out, report)


if __name__ == "__main__":
    app()
