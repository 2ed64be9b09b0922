"""python -m bench.batch: the same requests together and one after another, on the embedded pair, in rotation.

A round decodes all requests in both ways, prompts included; what counts is the ratio of their tokens per second within
the round. Before anything is timed, both must give plain decoding's tokens but for near-ties.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import cycle, islice
from typing import Annotated

import torch
import typer
from torch import Tensor

from nanospec import GenerationResult, SpeculativeDecoder
from nanospec.cli.errors import one_line_errors
from nanospec.cli.machine import describe_machine
from nanospec.cli.measure import AUTOREGRESSIVE, find_differences
from nanospec.cli.prompts import read_prompts
from nanospec.tree_shape import parse_tree_shape

ONE_BY_ONE, TOGETHER = "one after another", "together"
EXIT_WRONG_RESULT = 1
Way = Callable[[], list[GenerationResult]]


def main(
    requests: Annotated[int, typer.Option(min=1, help="Requests: the built-in prompts, over and over.")] = 32,
    max_batch: Annotated[int, typer.Option(min=1, help="Rows of the batch.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Of every request, unless it ends before.")] = 128,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds, each with both ways.")] = 5,
    vocab: Annotated[str, typer.Option(help="Draft vocabulary.")] = "in-context",
    tree: Annotated[str | None, typer.Option(help="'auto' or DEPTH,BRANCHING,NODES of the batch.")] = None,
) -> None:
    """Time the same requests together and one after another; exit status 1 for tokens that are not the target's own."""
    with one_line_errors(False):
        decoder = SpeculativeDecoder.from_demo(vocab=vocab)
        shape = tree if tree in (None, "auto") else parse_tree_shape(tree)
        prompts = list(islice(cycle(decoder.encode(prompt.text) for prompt in read_prompts(None)), requests))
        batch_shape = decoder.batch_engine(max_batch, shape).tree if shape == "auto" else shape

        def together() -> list[GenerationResult]:
            results = dict(decoder.generate_many(prompts, max_batch, batch_shape, max_new_tokens=max_new_tokens))
            return [results[place] for place in range(requests)]

        def one_by_one() -> list[GenerationResult]:
            return [decoder.generate(prompt, max_new_tokens=max_new_tokens) for prompt in prompts]

        ways: dict[str, Way] = {ONE_BY_ONE: one_by_one, TOGETHER: together}
        _check(decoder, prompts, max_new_tokens, ways)
        _time(decoder, ways, rounds)


def _check(decoder: SpeculativeDecoder, prompts: list[Tensor], max_new_tokens: int, ways: dict[str, Way]) -> None:
    """Both ways against plain decoding; exits for a difference that rounding does not explain."""

    def plain(place: int, return_candidates: bool) -> GenerationResult:
        return decoder.generate_autoregressive(
            prompts[place], max_new_tokens=max_new_tokens, return_candidates=return_candidates
        )

    results = {AUTOREGRESSIVE: [plain(place, False) for place in range(len(prompts))]}
    results |= {name: decode() for name, decode in ways.items()}
    differences = find_differences(results, lambda place: plain(place, True), decoder.target.dtype)
    wrong = [difference for difference in differences if not difference.near_tie]
    for name in ways:
        stats = [result.stats for result in results[name]]
        accept_length = sum(s.step_tokens for s in stats) / max(1, sum(s.steps for s in stats))
        near_ties = sum(difference.near_tie for difference in differences if difference.vocab == name)
        typer.echo(
            f"{name}: tree {tuple(stats[0].tree or ())}, accept length {accept_length:.2f}, near-ties {near_ties}"
        )
    if wrong:
        typer.echo(f"error: {len(wrong)} outputs are not the target's own, the first {wrong[0]}", err=True)
        raise typer.Exit(EXIT_WRONG_RESULT)


def _time(decoder: SpeculativeDecoder, ways: dict[str, Way], rounds: int) -> None:
    """Prints tokens per second of every round, and the ratio with its quartiles."""
    ratios = []
    for turn in range(rounds):
        rates = {}
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            began = time.perf_counter()
            num_tokens = sum(len(result.token_ids) for result in ways[name]())
            if decoder.target.device.type == "cuda":
                torch.cuda.synchronize()
            rates[name] = num_tokens / (time.perf_counter() - began)
        ratios.append(rates[TOGETHER] / rates[ONE_BY_ONE])
        listed = ", ".join(f"{name} {rates[name]:.1f} tokens/s" for name in ways)
        typer.echo(f"round {turn + 1}: {listed}, ratio {ratios[-1]:.2f}")
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    machine = describe_machine(decoder.target.device, decoder.target.dtype)
    typer.echo(f"ratio {median:.2f}, quartiles {low:.2f} .. {high:.2f}; {machine}")


if __name__ == "__main__":
    typer.run(main)
