"""Corpus in, token windows out: JSON lines of prompt and response become one flat token array with document bounds."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

BOS_ID, EOS_ID, INST_ID, END_INST_ID = 1, 2, 3, 4  # Tekken: <s> </s> [INST] [/INST]
TOKENIZE_BATCH = 512


@dataclass(frozen=True)
class TokenizedCorpus:
    """Documents `<s>[INST]prompt[/INST]response</s>` back to back.

    tokens          int32 [N]    all documents
    starts          int64 [R+1]  document r is tokens[starts[r]:starts[r+1]]
    response_starts int64 [R]    offset in `tokens` of the first response token of document r
    categories      R names
    """

    tokens: np.ndarray
    starts: np.ndarray
    response_starts: np.ndarray
    categories: list[str]

    def document(self, index: int) -> Tensor:
        """Tokens of one document, int64 [length]."""
        return torch.from_numpy(self.tokens[self.starts[index] : self.starts[index + 1]].astype(np.int64))

    def prompt_length(self, index: int) -> int:
        return int(self.response_starts[index] - self.starts[index])

    def counts(self, vocab_size: int) -> Tensor:
        """Occurrences of every id, float32 [V]."""
        return torch.from_numpy(np.bincount(self.tokens, minlength=vocab_size).astype(np.float32))

    def frequent_ids(self, vocab_size: int, num_ids: int) -> Tensor:
        """int64 [num_ids], most frequent first, ties to the smaller id."""
        return self.counts(vocab_size).sort(descending=True, stable=True).indices[:num_ids]


def read_records(path: Path) -> Iterator[dict]:
    """Records of a .jsonl or .jsonl.xz file with at least `prompt` and `response`."""
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def tokenize_corpus(path: Path, tokenizer, cache_dir: Path) -> TokenizedCorpus:
    """Tokenize once; a later call reads the arrays back from `cache_dir`."""
    cache = cache_dir / f"{path.name}.npz"
    if not cache.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        _tokenize(path, tokenizer, cache)
    arrays = np.load(cache, allow_pickle=False)
    return TokenizedCorpus(
        arrays["tokens"], arrays["starts"], arrays["response_starts"], [str(name) for name in arrays["categories"]]
    )


def _tokenize(path: Path, tokenizer, cache: Path) -> None:
    pieces: list[np.ndarray] = []
    starts, response_starts, categories = [0], [], []
    records = list(read_records(path))
    for first in range(0, len(records), TOKENIZE_BATCH):
        batch = records[first : first + TOKENIZE_BATCH]
        prompts = tokenizer.encode_batch([record["prompt"] for record in batch], add_special_tokens=False)
        responses = tokenizer.encode_batch([record["response"] for record in batch], add_special_tokens=False)
        for record, prompt, response in zip(batch, prompts, responses, strict=True):
            head = [BOS_ID, INST_ID, *prompt.ids, END_INST_ID]
            pieces.append(np.asarray([*head, *response.ids, EOS_ID], dtype=np.int32))
            response_starts.append(starts[-1] + len(head))
            starts.append(starts[-1] + len(pieces[-1]))
            categories.append(record.get("category", "all"))
    partial = cache.with_suffix(".partial.npz")
    np.savez(
        partial,
        tokens=np.concatenate(pieces),
        starts=np.asarray(starts, dtype=np.int64),
        response_starts=np.asarray(response_starts, dtype=np.int64),
        categories=np.asarray(categories),
    )
    partial.rename(cache)


def packed_batches(corpus: TokenizedCorpus, tokens_per_batch: int, seed: int) -> Iterator[Tensor]:
    """Endless shuffled epochs of packed documents, cut into int64 [tokens_per_batch + 1] pieces that overlap by one.

    The end of an epoch that fills no piece is left out. Raises ValueError for a corpus that fills none.
    """
    if len(corpus.tokens) <= tokens_per_batch:
        raise ValueError(f"tokens_per_batch must be below the corpus's {len(corpus.tokens)}, got {tokens_per_batch}")
    epoch = 0
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(len(corpus.categories))
        packed = np.concatenate([corpus.tokens[corpus.starts[row] : corpus.starts[row + 1]] for row in order])
        for first in range(0, len(packed) - tokens_per_batch, tokens_per_batch):
            yield torch.from_numpy(packed[first : first + tokens_per_batch + 1].astype(np.int64))
        epoch += 1
