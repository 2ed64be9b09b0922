"""Corpus files against documents put together by hand."""

from __future__ import annotations

import json
import lzma
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from nanospec.training.corpus import TokenizedCorpus, packed_batches, tokenize_corpus

WORDS = {"<unk>": 0, "<s>": 1, "</s>": 2, "[INST]": 3, "[/INST]": 4, "a": 5, "b": 6, "c": 7}
RECORDS = [
    {"prompt": "a b", "response": "c", "category": "chat"},
    {"prompt": "", "response": "b b a"},
    {"prompt": "c", "response": "", "category": "code"},
]
DOCUMENTS = [[1, 3, 5, 6, 4, 7, 2], [1, 3, 4, 6, 6, 5, 2], [1, 3, 7, 4, 2]]


@pytest.fixture
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def write_corpus(path: Path) -> Path:
    text = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
    path.write_bytes(lzma.compress(text) if path.suffix == ".xz" else text)
    return path


@pytest.mark.parametrize("name", ["tiny.jsonl", "tiny.jsonl.xz"])
def test_documents_are_prompt_and_response_between_control_ids(tmp_path: Path, tokenizer: Tokenizer, name: str) -> None:
    corpus = tokenize_corpus(write_corpus(tmp_path / name), tokenizer, tmp_path / "new" / "cache")
    assert [corpus.document(index).tolist() for index in range(3)] == DOCUMENTS
    assert corpus.document(0).dtype == torch.int64
    assert [corpus.prompt_length(index) for index in range(3)] == [5, 3, 4]
    assert corpus.categories == ["chat", "all", "code"]
    assert corpus.counts(10).tolist() == [0, 3, 3, 3, 3, 2, 3, 2, 0, 0]
    assert corpus.frequent_ids(10, 7).tolist() == [1, 2, 3, 4, 6, 5, 7]


def test_a_second_call_reads_the_arrays_back(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write_corpus(tmp_path / "tiny.jsonl")
    first = tokenize_corpus(path, tokenizer, tmp_path / "cache")
    path.unlink()
    second = tokenize_corpus(path, None, tmp_path / "cache")
    assert np.array_equal(first.tokens, second.tokens)
    assert np.array_equal(first.starts, second.starts)
    assert np.array_equal(first.response_starts, second.response_starts)
    assert first.categories == second.categories
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == ["tiny.jsonl.npz"]


def corpus_of(lengths: list[int]) -> TokenizedCorpus:
    """Document r repeats the id r."""
    tokens = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    starts = np.concatenate(([0], np.cumsum(lengths)))
    return TokenizedCorpus(tokens, starts, starts[:-1] + 1, ["all"] * len(lengths))


@given(
    lengths=st.lists(st.integers(1, 7), min_size=2, max_size=12),
    tokens_per_batch=st.integers(1, 6),
    seed=st.integers(0, 99),
)
@settings(max_examples=50)
def test_every_epoch_holds_every_document_whole_and_once_but_for_a_short_tail(
    lengths: list[int], tokens_per_batch: int, seed: int
) -> None:
    num_tokens = sum(lengths)
    per_epoch = (num_tokens - 1) // tokens_per_batch
    if per_epoch == 0:
        return
    batches = list(islice(packed_batches(corpus_of(lengths), tokens_per_batch, seed), 2 * per_epoch))
    assert all(batch.shape == (tokens_per_batch + 1,) and batch.dtype == torch.int64 for batch in batches)
    for epoch in (batches[:per_epoch], batches[per_epoch:]):
        assert all(first[-1] == second[0] for first, second in pairwise(epoch))
        seen = torch.cat([epoch[0][:1], *(batch[1:] for batch in epoch)])
        assert 0 <= num_tokens - seen.numel() < tokens_per_batch
        documents, runs = torch.unique_consecutive(seen, return_counts=True)
        assert len(set(documents.tolist())) == len(documents)
        assert runs[:-1].tolist() == [lengths[document] for document in documents[:-1].tolist()]
        missing = set(range(len(lengths))) - set(documents.tolist())
        assert sum(lengths[document] for document in missing) < tokens_per_batch


def test_a_corpus_that_fills_no_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="tokens_per_batch must be below the corpus's 6, got 6"):
        next(packed_batches(corpus_of([4, 2]), 6, 0))


def test_epochs_differ_and_a_seed_reproduces_them() -> None:
    corpus = corpus_of([3] * 20)

    def epochs(seed: int) -> list[torch.Tensor]:
        return list(islice(packed_batches(corpus, 59, seed), 2))

    first, second = epochs(7)
    assert not torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(epochs(7), (first, second), strict=True))
    assert not torch.equal(epochs(8)[0], first)
