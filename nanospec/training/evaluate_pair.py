"""Held-out figures of a target and its drafter, per task: loss, and accept length of single speculative steps.

    python -m nanospec.training.evaluate_pair --corpus heldout.jsonl.xz --target DIR --draft DIR --cache DIR --out FILE

One step per context, cut at a random place of a held-out response, so that no repetitive output of the model's own
flatters anybody. Accept length: tokens per target pass, bonus token included, greedy.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nanospec.checkpoints.tokenizer import read_tokenizer
from nanospec.coverage.policy import EAGLE2_TEMPERATURE, PolicyProbe, parse_policy
from nanospec.coverage.run import measure_cuts
from nanospec.decode import SpeculativeDecoder
from nanospec.sampling import SamplingParams
from nanospec.target import HEAD_CHUNK, Target
from nanospec.training.corpus import TokenizedCorpus, tokenize_corpus
from nanospec.tree_shape import TreeShape

TREE = TreeShape(depth=5, branching=8, num_nodes=32)
POLICIES = ("full", "static:1024", "static:4096", "static:32768", "in-context", "hybrid:1024", "hybrid:1024+prior")


@torch.inference_mode()
def response_loss(target: Target, document: Tensor, prompt_length: int) -> tuple[float, int]:
    """Sum of the nats of the response tokens given prompt and earlier response, and their number."""
    document = document[: target.context_window]
    target.reset(document.numel())
    features = target.prefill(document[None]).features[0]
    goals = document[prompt_length:]
    states = features[prompt_length - 1 : -1]
    total = 0.0
    for state, goal in zip(states.split(HEAD_CHUNK), goals.split(HEAD_CHUNK), strict=True):
        total += nn.functional.cross_entropy(target.head(state).float(), goal, reduction="sum").item()
    return total, goals.numel()


def loss_per_task(target: Target, corpus: TokenizedCorpus, rows: np.ndarray) -> dict[str, float]:
    """Nats per response token, by category and "all"."""
    nats: dict[str, float] = defaultdict(float)
    count: dict[str, int] = defaultdict(int)
    for row in rows:
        if corpus.prompt_length(row) >= target.context_window:
            continue
        loss, tokens = response_loss(target, corpus.document(row), corpus.prompt_length(row))
        for name in (corpus.categories[row], "all"):
            nats[name] += loss
            count[name] += tokens
    return {name: nats[name] / count[name] for name in sorted(nats)}


def accept_length_per_task(
    decoder: SpeculativeDecoder, contexts: list[tuple[str, Tensor]], policies: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Per policy its mean number of active rows ("rows"), and its mean accept length by category and "all"."""
    probes = [PolicyProbe(decoder, parse_policy(policy), EAGLE2_TEMPERATURE) for policy in policies]
    lengths: list[dict[str, list[int]]] = [defaultdict(list) for _ in probes]
    rows: list[list[int]] = [[] for _ in probes]
    for name, context in contexts:
        cut = context.shape[1]
        measured = measure_cuts(decoder, probes, context, [cut], SamplingParams())[cut].policies
        for place, measurement in enumerate(measured):
            rows[place].append(measurement.rows)
            lengths[place][name].append(measurement.accept)
            lengths[place]["all"].append(measurement.accept)
    return {
        policy: {
            "rows": statistics.fmean(rows[place]),
            **{name: statistics.fmean(values) for name, values in sorted(lengths[place].items())},
        }
        for place, policy in enumerate(policies)
    }


def cut_contexts(corpus: TokenizedCorpus, rows: np.ndarray, window: int, seed: int) -> list[tuple[str, Tensor]]:
    """(category, tokens int64 [1, n]): each document up to a random place within its response."""
    generator = np.random.default_rng(seed)
    contexts = []
    for row in rows:
        document, first = corpus.document(row), corpus.prompt_length(row)
        last = min(document.numel(), window - TREE.depth - 2)
        if first < last - 1:
            contexts.append((corpus.categories[row], document[None, : generator.integers(first, last)]))
    return contexts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--draft", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the tokenized corpus")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-documents", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocab", nargs="+", default=list(POLICIES))
    parser.add_argument("--draft-temperature", type=float, default=1.0, help="1 is EAGLE-2's tree")
    parser.add_argument("--no-loss", action="store_true", help="leave out the target's loss")
    args = parser.parse_args()
    tokenizer = read_tokenizer(args.target / "tokenizer.json.xz")
    options = {"tree": TREE, "dtype": "bfloat16", "draft_temperature": args.draft_temperature}
    decoder = SpeculativeDecoder.from_pretrained(args.target, args.draft, vocab="full", **options)
    corpus = tokenize_corpus(args.corpus, tokenizer, args.cache)
    rows = np.random.default_rng(args.seed).permutation(len(corpus.categories))[: args.num_documents]
    contexts = cut_contexts(corpus, rows, decoder.target.context_window, args.seed)
    figures: dict = {"documents": len(rows), "contexts": len(contexts), "tree": TREE._asdict()}
    figures["draft_temperature"] = args.draft_temperature
    if not args.no_loss:
        figures["loss_nats_per_response_token"] = loss_per_task(decoder.target, corpus, rows)
    figures["accept_length"] = accept_length_per_task(decoder, contexts, args.vocab)
    for policy, lengths in figures["accept_length"].items():
        print(policy, {name: round(value, 3) for name, value in lengths.items()}, flush=True)
    args.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
