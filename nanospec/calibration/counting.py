"""The count itself: batches of texts, the ids that each leads to, and a state on the disk to go on from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from nanospec.calibration.token_counts import TokenCounts, load_counts, save_counts, skip_counted

if TYPE_CHECKING:
    from torch import Tensor

    from nanospec.decode import SpeculativeDecoder

BATCH_TEXTS, BATCH_CHARACTERS = 512, 1 << 20
SAVE_EVERY_S = 30.0

IdsOf = Callable[[Sequence[str], int], Sequence[Sequence[int]]]


def count_ids(
    texts: Iterable[str],
    ids_of: IdsOf,
    vocab_size: int,
    state_path: Path,
    settings: Mapping[str, Any],
    batch_texts: int = BATCH_TEXTS,
    save_every_s: float = SAVE_EVERY_S,
    advance: Callable[[int], None] = lambda num_texts: None,
) -> TokenCounts:
    """Counts of the ids that all texts lead to.

    ids_of      texts and the number of the first of them -> the ids of each; called with at most `batch_texts`
    state_path  written every `save_every_s` seconds and when the count ends, by an error or an interruption too; what
                it holds is not counted again. It is left there
    settings    what the counts depend on beside the texts: a state with others is refused
    advance     called with the number of texts that are done, also those that an earlier run had counted

    Raises ValueError for a state of another corpus or other settings, and what `texts` and `ids_of` raise.
    """
    counted = load_counts(state_path, vocab_size, settings)
    remaining = iter(texts)
    skip_counted(remaining, counted, str(state_path))
    advance(counted.num_texts)
    saved = time.monotonic()
    try:
        for batch in _batches(remaining, batch_texts):
            counted = counted.add(batch, ids_of(batch, counted.num_texts))
            advance(counted.num_texts)
            if time.monotonic() - saved >= save_every_s:
                save_counts(state_path, counted, settings)
                saved = time.monotonic()
    finally:
        if counted.num_texts:
            save_counts(state_path, counted, settings)
    return counted


def tokenized_by(tokenizer: PreTrainedTokenizerBase) -> IdsOf:
    """Ids of the texts as they stand: nothing is added, cut off or filled up."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer in Python
        return lambda texts, first: tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    backend.no_truncation()
    backend.no_padding()
    return lambda texts, first: [
        encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)
    ]


def generated_by(decoder: SpeculativeDecoder, prompts: Sequence[Tensor], seed: int = 0, **settings: Any) -> IdsOf:
    """Ids that the target itself says after the prompts [1, P], by their number: VocabTrim's calibration (Goel et al.
    2025, section 3). Settings as in `generate`; prompt i is sampled with seed + i, whichever run it falls into."""

    def generate(texts: Sequence[str], first: int) -> list[list[int]]:
        numbers = range(first, first + len(texts))
        return [decoder.generate(prompts[i], seed=seed + i, **settings).token_ids for i in numbers]

    return generate


def _batches(texts: Iterator[str], max_texts: int) -> Iterator[list[str]]:
    """Texts in order, a batch at a time, which a text of many characters ends."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == max_texts or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
