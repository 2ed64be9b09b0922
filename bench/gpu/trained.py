"""A trained pair end to end: python -m bench.gpu.trained --corpus FILE --out DIR

Trains a target over 131,072 ids and its EAGLE drafter on the device, then decodes held-out documents with every draft
vocabulary: tokens/s and accept length of the same steps, nothing assumed.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from bench.gpu.report import write_text
from bench.gpu.run_context import read_device
from bench.gpu.trained_decoding import MARGIN, measure_contexts, measure_free_text, warm_up
from bench.gpu.trained_pair import (
    DTYPE,
    SEED,
    TRAINED_SIZES,
    TrainedSize,
    split_documents,
    train_drafter,
    train_target,
)
from nanospec.checkpoints.tokenizer import read_tokenizer
from nanospec.cli.errors import one_line_errors
from nanospec.cli.machine import describe_machine
from nanospec.decode import SpeculativeDecoder
from nanospec.demo import TARGET_DIRECTORY
from nanospec.training.corpus import TokenizedCorpus, tokenize_corpus
from nanospec.training.evaluate_pair import cut_contexts

JSON_NAME, MARKDOWN_NAME = "trained.json", "trained.md"
TARGET_SHARE, DRAFTER_SHARE = 0.55, 0.30  # of the time behind tokenization; the rest is for measuring
HELD_OUT_SHARE, MAX_HELD_OUT, MIN_HELD_OUT = 0.02, 400, 4
STATIC_SIZE = 32_768
VOCABS = ("full", f"static:{STATIC_SIZE}", "in-context")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    corpus: Annotated[Path, typer.Option(help="JSON lines with prompt and response, plain or .xz.")],
    out: Annotated[Path, typer.Option(help="Directory for the figures and the tokenized corpus.")],
    device: Annotated[str | None, typer.Option(metavar="cuda|cpu", help="Default: cuda where there is one.")] = None,
    minutes: Annotated[float, typer.Option(help="For everything together.")] = 9,
    size: Annotated[str, typer.Option(metavar="|".join(TRAINED_SIZES), help="tiny is for trying it out.")] = "full",
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train a pair and decode with it: tokens/s and accept length together."""
    began = time.monotonic()
    with one_line_errors(debug):
        if size not in TRAINED_SIZES:
            raise ValueError(f"size must be one of {', '.join(TRAINED_SIZES)}, got {size!r}")
        if minutes <= 0:
            raise ValueError(f"minutes must be above 0, got {minutes:g}")
        place = read_device(device)
        figures = train_and_decode(corpus, out, place, TRAINED_SIZES[size], began + minutes * 60)
        report = {
            "machine": describe_machine(place, DTYPE),
            "command": shlex.join(["python", "-m", "bench.gpu.trained", *sys.argv[1:]]),
            "settings": {"size": size, "minutes": minutes, **asdict(TRAINED_SIZES[size])},
            **figures,
            "seconds": round(time.monotonic() - began, 1),
        }
        write_text(out / JSON_NAME, json.dumps(report, indent=2) + "\n")
        write_text(out / MARKDOWN_NAME, _as_markdown(report))
        typer.echo(f"{out / JSON_NAME} and {out / MARKDOWN_NAME} in {report['seconds']:.0f} s")


def train_and_decode(
    corpus_path: Path, out: Path, device: torch.device, size: TrainedSize, end_time: float
) -> dict[str, Any]:
    """Figures of training and decoding; all is over at about `end_time` on the monotonic clock."""
    tokenizer = read_tokenizer(TARGET_DIRECTORY / "tokenizer.json.xz")
    vocab_size = tokenizer.get_vocab_size()
    corpus = tokenize_corpus(corpus_path, tokenizer, out / "tokens")
    num_documents = len(corpus.categories)
    num_held_out = max(MIN_HELD_OUT, min(MAX_HELD_OUT, round(num_documents * HELD_OUT_SHARE)))
    if num_documents <= num_held_out:
        raise ValueError(f"corpus must hold more than {num_held_out} documents, got {num_documents}")
    train_part, held_out = split_documents(corpus, num_held_out)

    left_s = max(end_time - time.monotonic(), 1.0)
    target, of_target = train_target(train_part, vocab_size, size, device, TARGET_SHARE * left_s)
    drafter, of_drafter = train_drafter(train_part, target, size, DRAFTER_SHARE * left_s)
    known = train_part.frequent_ids(vocab_size, STATIC_SIZE)
    decoders = {vocab: SpeculativeDecoder(target, drafter, vocab, frequent_ids=known) for vocab in VOCABS}

    contexts, prompts = held_out_inputs(held_out, target.context_window - MARGIN, size.max_new_tokens)
    warm_up(decoders, max(x.shape[1] for x in (*contexts, *prompts)) + size.max_new_tokens)
    half_time = time.monotonic() + (end_time - time.monotonic()) / 2
    return {
        "documents": {"training": len(train_part.categories), "held_out": num_held_out},
        "training": {"target": of_target, "drafter": of_drafter},
        "parameters": sum(parameter.numel() for parameter in target.model.parameters()),
        "tree": decoders["full"].tree._asdict(),
        "real_contexts": measure_contexts(decoders, contexts, half_time),
        "free_text_at_temperature_1": measure_free_text(decoders, prompts, size.max_new_tokens, end_time),
    }


def held_out_inputs(held_out: TokenizedCorpus, window: int, max_new_tokens: int) -> tuple[list[Tensor], list[Tensor]]:
    """Contexts that end within a response, and prompts, int64 [1, n] each; those that leave no room are left out.

    Raises ValueError if none is left.
    """
    rows = range(len(held_out.categories))
    contexts = [tokens for _, tokens in cut_contexts(held_out, np.asarray(rows), window - max_new_tokens, SEED)]
    prompts = [held_out.document(row)[None, : held_out.prompt_length(row)] for row in rows]
    prompts = [prompt for prompt in prompts if prompt.shape[1] <= window - 2 * max_new_tokens]
    if not contexts or not prompts:
        raise ValueError(f"corpus must hold documents shorter than {window} tokens, got none among the held-out ones")
    return contexts, prompts


def _as_markdown(report: dict[str, Any]) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    lines = ["# A trained pair, end to end", "", machine, "", f"    {report['command']}", ""]
    lines += [
        f"{report['parameters'] / 1e6:.0f}M parameters; {name}: {report['training'][name]}"
        for name in report["training"]
    ]
    for name in ("real_contexts", "free_text_at_temperature_1"):
        lines += ["", f"## {name.replace('_', ' ')}", "| vocabulary | tokens/s | over full | over autoregressive |"]
        lines[-1] += " accept length | active rows |"
        lines.append("|---|---|---|---|---|---|")
        for vocab, figures in report[name].items():
            if "skipped" in figures:
                lines.append(f"| {vocab} | skipped: {figures['skipped']} | | | | |")
                continue
            keys = ("tokens_per_s", "speed_over_full", "speed_over_autoregressive", "accept_length", "active_rows")
            lines.append(f"| {vocab} | " + " | ".join(str(figures.get(key, "-")) for key in keys) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    app()
