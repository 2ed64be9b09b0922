"""How often the target says what its context lacks but a list of frequent ids has: what a hybrid's base is there for.

    python -m nanospec.training.measure_lack --corpus heldout.jsonl.xz --target DIR --draft DIR --cache DIR --out FILE

Over every position of held-out responses: the target's own choice is lacking if neither the text nor the target's best
ids at any position had it when the step began. The choice is looked at as each of the first `PATH` tokens of a step.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nanospec.checkpoints.tokenizer import read_tokenizer
from nanospec.decode import SpeculativeDecoder
from nanospec.open_draft import FREQUENT_IDS
from nanospec.training.corpus import tokenize_corpus
from nanospec.vocab.base_size import BLOCK_IDS, MOST_BLOCKS

PATH = 4
NEVER = 2**40
STAGES = {"first 32 tokens": (0, 32), "32 to 127": (32, 128), "from 128 on": (128, NEVER)}


def lacking_choices(token_ids: Tensor, top_ids: Tensor, prompt_length: int, vocab_size: int) -> Tensor:
    """bool [n - P, PATH]: whether the target's choice after position P, P + 1, .. was lacking.

    token_ids int64 [n], a document whose first P = prompt_length tokens are the prompt; top_ids int64 [n, k], the
    target's best ids after each. Column j: as the j-th token of a step, j positions behind what the step began with.
    """
    position = torch.arange(token_ids.shape[0])
    known = torch.cat((token_ids[:, None], top_ids), 1)
    since = torch.full((vocab_size,), NEVER)
    since.scatter_reduce_(0, known.flatten(), position.repeat_interleave(known.shape[1]), "amin")
    observed = (position[prompt_length:, None] - 1 - torch.arange(PATH)).clamp(min=prompt_length - 1)
    return since[top_ids[prompt_length:, 0]][:, None] > observed


def lack_per_block(lacking: Tensor, choices: Tensor, rank: Tensor) -> Tensor:
    """float64 [blocks]: how many of the lacking choices each block of the ranked ids has.

    lacking bool [m, PATH], choices int64 [m], rank int64 [V]
    """
    block = (rank[choices] // BLOCK_IDS).clamp(max=MOST_BLOCKS)
    counts = torch.zeros(MOST_BLOCKS + 1, dtype=torch.float64)
    return counts.scatter_add_(0, block, lacking.double().mean(1))[:MOST_BLOCKS]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("corpus", "target", "draft", "cache", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--num-documents", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    decoder = SpeculativeDecoder.from_pretrained(args.target, args.draft, vocab="full", dtype="bfloat16")
    if decoder.frequent_ids is None:
        raise FileNotFoundError(f"--draft must hold {FREQUENT_IDS}, got {args.draft}")
    target, ids = decoder.target, decoder.frequent_ids
    rank = torch.full((target.vocab_size,), NEVER).scatter_(0, ids, torch.arange(ids.shape[0]))
    corpus = tokenize_corpus(args.corpus, read_tokenizer(args.target / "tokenizer.json.xz"), args.cache)
    rows = np.random.default_rng(args.seed).permutation(len(corpus.categories))[: args.num_documents]
    lack: dict[str, Tensor] = {}
    for row in rows:
        document, first = corpus.document(row)[: target.context_window], corpus.prompt_length(row)
        target.reset(document.numel())
        top_ids = target.prefill(document[None], decoder.num_top).top_ids
        lacking = lacking_choices(document, top_ids, first, target.vocab_size)
        places = {name: slice(*bounds) for name, bounds in STAGES.items()} | {corpus.categories[row]: slice(None)}
        for name, place in places.items():
            choices = top_ids[first:, 0][place]
            figures = torch.cat((lack_per_block(lacking[place], choices, rank), torch.tensor([choices.shape[0]])))
            lack[name] = lack.get(name, 0) + figures
    per_token = {name: (figures[:-1] / figures[-1]).tolist() for name, figures in lack.items()}
    for name, blocks in per_token.items():
        print(name, round(sum(blocks), 4), [round(block, 4) for block in blocks])
    args.out.write_text(json.dumps(per_token, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
