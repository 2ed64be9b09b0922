"""Accept length per family of drafters: python -m bench.families --corpus FILE --heldout FILE --out DIR

Trains an EAGLE-3 drafter, Medusa heads and a small language model for the embedded target, writes each as a published
checkpoint, reads it back as any user's file, and takes one greedy step behind the same held-out contexts with each of
them, the embedded EAGLE-1 drafter and prompt lookup: with the full draft vocabulary and with two that follow the
context. A run that is called again goes on where it stopped.
"""

from __future__ import annotations

import json
import shlex
import shutil
import statistics
import sys
from collections import defaultdict
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from bench.family_recipes import RECIPES
from bench.gpu.report import write_text
from nanospec.checkpoints import load_drafter
from nanospec.checkpoints.target import load_target
from nanospec.checkpoints.trim import read_draft_head, trim_draft
from nanospec.cli.errors import one_line_errors
from nanospec.cli.machine import describe_machine
from nanospec.decode import GREEDY_DRAFT_TEMPERATURE, SpeculativeDecoder
from nanospec.demo import DRAFT_DIRECTORY, TARGET_DIRECTORY
from nanospec.drafters.drafter import Drafter
from nanospec.drafters.prompt_lookup import PROMPT_LOOKUP, PromptLookupDrafter
from nanospec.training.corpus import TokenizedCorpus, tokenize_corpus
from nanospec.training.draft_run import run_training
from nanospec.training.draft_trainer import DraftTrainingSettings
from nanospec.training.evaluate_pair import TREE, accept_length_per_task, cut_contexts

JSON_NAME, MARKDOWN_NAME = "families.json", "families.md"
DTYPE, SEED = torch.bfloat16, 0
FULL, NO_VOCABULARY = "full", "none"
POLICIES = (FULL, "in-context", "hybrid:1024+prior")
OWN_HEAD_ROWS = 32_768  # of an EAGLE-3 draft with a vocabulary of its own, as published ones have
EMBEDDED, OWN_HEAD = "eagle", "eagle3-d2t"
TITLES = {
    EMBEDDED: "EAGLE-1, embedded",
    "eagle3": RECIPES["eagle3"].title,
    OWN_HEAD: f"EAGLE-3, d2t of {OWN_HEAD_ROWS:,}",
    "medusa": RECIPES["medusa"].title,
    "causal-lm": RECIPES["causal-lm"].title,
    PROMPT_LOOKUP: "prompt lookup",
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    corpus: Annotated[Path, typer.Option(help="JSON lines with prompt and response, plain or .xz: for training.")],
    heldout: Annotated[Path, typer.Option(help="The same, for measuring.")],
    out: Annotated[Path, typer.Option(help="Directory for checkpoints, drafts and figures.")],
    minutes: Annotated[float, typer.Option(help="Of training, for every family.")] = 15,
    family: Annotated[list[str] | None, typer.Option(metavar="|".join(TITLES), help="Default: all.")] = None,
    num_documents: Annotated[int, typer.Option(help="Held-out documents, a context of each.")] = 300,
    tokens_per_step: Annotated[int, typer.Option()] = 2048,
    seq_len: Annotated[int, typer.Option()] = 512,
    matrix_lr: Annotated[float, typer.Option()] = 0.015,
    max_steps: Annotated[int | None, typer.Option(help="Training ends there if that comes earlier.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of tokenized files; default: in OUT.")] = None,
    compile: Annotated[bool, typer.Option("--compile", help="The target's pass in training.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Accept length with the full and with in-context draft vocabularies, for every family of drafters."""
    with one_line_errors(debug):
        chosen = family or list(TITLES)
        unknown = sorted(set(chosen) - set(TITLES))
        if unknown:
            raise ValueError(f"family must be one of {', '.join(TITLES)}, got {', '.join(unknown)}")
        if minutes < 0:
            raise ValueError(f"minutes must be at least 0, got {minutes:g}")
        settings = DraftTrainingSettings(seq_len=seq_len, matrix_lr=matrix_lr, seed=SEED, compile=compile)
        bench = FamilyBench(corpus, heldout, out, cache or out / "tokens", settings, num_documents)
        report: dict[str, Any] = {
            "command": shlex.join(["python", "-m", "bench.families", *sys.argv[1:]]),
            "machine": describe_machine(torch.device("cpu"), DTYPE),
            "training": {"minutes": minutes, "tokens_per_step": tokens_per_step, **asdict(settings)},
            "tree": TREE._asdict(),
            "draft_temperature": GREEDY_DRAFT_TEMPERATURE,
            "contexts": len(bench.contexts),
            "families": {},
        }
        for name in [name for name in TITLES if name in chosen]:
            figures = bench.train(name, minutes, tokens_per_step, max_steps) if name in RECIPES else {}
            report["families"][name] = {**figures, **bench.measure(name)}
            write_text(out / JSON_NAME, json.dumps(report, indent=2) + "\n")
            write_text(out / MARKDOWN_NAME, as_markdown(report))
        typer.echo("\n".join(table_of(report)))


class FamilyBench:
    """The embedded target, the texts, and the directories of the drafters that are trained and measured on them.

    Raises ValueError if no held-out document leaves room for a step.
    """

    def __init__(
        self,
        corpus: Path,
        heldout: Path,
        out: Path,
        cache: Path,
        settings: DraftTrainingSettings,
        num_documents: int,
    ) -> None:
        self.out, self.settings = out, settings
        self.target, self.tokenizer = load_target(TARGET_DIRECTORY, dtype=DTYPE, device="cpu")
        self.target.requires_grad_(False)
        tokenizer = self.tokenizer.backend_tokenizer
        heldout_texts = tokenize_corpus(heldout, tokenizer, cache)
        self.contexts = held_out_contexts(heldout_texts, num_documents, self.target.context_window)
        self.corpus = tokenize_corpus(corpus, tokenizer, cache)
        self.counts = self.corpus.counts(self.target.vocab_size)
        self.frequent_ids = self.corpus.frequent_ids(self.target.vocab_size, OWN_HEAD_ROWS)

    def directory(self, name: str) -> Path:
        return DRAFT_DIRECTORY if name == EMBEDDED else self.out / name / "draft"

    def train(self, name: str, minutes: float, tokens_per_step: int, max_steps: int | None) -> dict[str, Any]:
        """Trains what is left of `minutes` and writes the drafter; how much it has seen."""
        typer.echo(f"training {TITLES[name]}: log in {self.out / name / 'log.jsonl'}")
        trainer, save = RECIPES[name].begin(self.target, TARGET_DIRECTORY, self.counts, self.settings)
        run = run_training(trainer, self.corpus, self.out / name, minutes, tokens_per_step, max_steps)
        save(self.directory(name))
        return {"steps": run.num_steps, "tokens": run.num_tokens, "seconds": round(run.elapsed)}

    def measure(self, name: str) -> dict[str, Any]:
        """Size, and with every vocabulary the mean number of rows and the accept length per task and of all."""
        drafter = self.load(name)
        decoder = SpeculativeDecoder(
            self.target,
            drafter,
            FULL,
            TREE,
            self.tokenizer,
            frequent_ids=self.frequent_ids,
            draft_temperature=GREEDY_DRAFT_TEMPERATURE,
        )
        if isinstance(drafter, PromptLookupDrafter):
            vocabularies = {NO_VOCABULARY: accept_length_without_scores(decoder, self.contexts)}
            size = {}
        else:
            vocabularies = accept_length_per_task(decoder, self.contexts, POLICIES)
            size = {"bytes": (self.directory(name) / "model.safetensors").stat().st_size}
        lengths = ", ".join(f"{policy} {figures['all']:.3f}" for policy, figures in vocabularies.items())
        typer.echo(f"{TITLES[name]}: {lengths}")
        return {**size, "vocabularies": vocabularies}

    def load(self, name: str) -> Drafter:
        """The drafter as read from its published files."""
        if name == PROMPT_LOOKUP:
            return PromptLookupDrafter(self.target.device)
        if name == OWN_HEAD:
            shutil.rmtree(self.directory(name), ignore_errors=True)  # of what may have been trained less
            trim_draft(read_draft_head(self.directory("eagle3"), self.target), self.frequent_ids, self.directory(name))
        return load_drafter(self.directory(name), self.target, tokenizer=self.tokenizer)


def accept_length_without_scores(decoder: SpeculativeDecoder, contexts: list[tuple[str, Tensor]]) -> dict[str, float]:
    """As `accept_length_per_task`, for a drafter that scores nothing."""
    lengths: dict[str, list[int]] = defaultdict(list)
    for name, context in contexts:
        loop, _ = decoder.speculate(context, TREE, max_new_tokens=TREE.depth + 2)
        _, emitted = islice(loop.steps(), 2)
        for key in (name, "all"):
            lengths[key].append(len(emitted))
    return {"rows": 0.0, **{name: statistics.fmean(values) for name, values in sorted(lengths.items())}}


def held_out_contexts(heldout: TokenizedCorpus, num_documents: int, window: int) -> list[tuple[str, Tensor]]:
    """(category, tokens) of so many documents at random, each up to a random place of its response.

    Raises ValueError if there is none.
    """
    rows = np.random.default_rng(SEED).permutation(len(heldout.categories))[:num_documents]
    contexts = cut_contexts(heldout, rows, window, SEED)
    if not contexts:
        raise ValueError(f"heldout must hold responses within {window} tokens, got none in {len(rows)} documents")
    return contexts


def as_markdown(report: dict[str, Any]) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    about = f"{report['contexts']} contexts, tree {report['tree']}, draft temperature {report['draft_temperature']}"
    lines = ["# Accept length per family", "", machine, "", f"    {report['command']}", "", about, ""]
    return "\n".join([*lines, *table_of(report)]) + "\n"


def table_of(report: dict[str, Any]) -> list[str]:
    """A row per family: tokens trained on, bytes of its file, accept length and share of the full vocabulary's."""
    titles = [policy.replace(":", "-") for policy in POLICIES]
    rows = ["| drafter | tokens trained on | file, MB | " + " | ".join(titles) + " |", "|---|---|---|---|---|---|"]
    for name, figures in report["families"].items():
        tokens = f"{figures['tokens'] / 1e6:.1f}M" if "tokens" in figures else "-"
        size = f"{figures['bytes'] / 1e6:.1f}" if "bytes" in figures else "-"
        rows.append("| " + " | ".join([TITLES[name], tokens, size, *_cells(figures["vocabularies"])]) + " |")
    return rows


def _cells(vocabularies: dict[str, Any]) -> list[str]:
    if NO_VOCABULARY in vocabularies:
        return [f"{vocabularies[NO_VOCABULARY]['all']:.2f}", "-", "-"]
    of_full = {policy: vocabularies[policy]["all"] / vocabularies[FULL]["all"] for policy in POLICIES[1:]}
    rows = {policy: f"{vocabularies[policy]['rows']:,.0f} rows" for policy in POLICIES}
    return [
        f"{vocabularies[FULL]['all']:.2f} ({rows[FULL]})",
        *(f"{vocabularies[policy]['all']:.2f} ({share:.1%}, {rows[policy]})" for policy, share in of_full.items()),
    ]


if __name__ == "__main__":
    app()
