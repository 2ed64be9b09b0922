"""How often every id occurred, after how many texts: what an interrupted count goes on from."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nanospec.all_or_nothing import new_file
from nanospec.untrusted_files import parse_json


class TokenCounts(NamedTuple):
    """Counts int64 [V] over the first `num_texts` texts, whose chained digest tells whether a corpus is the same."""

    counts: Tensor
    num_texts: int = 0
    digest: str = ""

    def add(self, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> TokenCounts:
        """These and the ids of further texts. Raises ValueError naming an id outside the vocabulary."""
        vocab_size = self.counts.shape[0]
        seen = np.fromiter(chain.from_iterable(ids), dtype=np.int64)
        wrong = seen[(seen < 0) | (seen >= vocab_size)]
        if wrong.size:
            raise ValueError(f"ids must be between 0 and {vocab_size - 1}, got {int(wrong[0])}")
        counts = self.counts + torch.from_numpy(np.bincount(seen, minlength=vocab_size))
        return TokenCounts(counts, self.num_texts + len(texts), reduce(_longer_digest, texts, self.digest))


def no_counts(vocab_size: int) -> TokenCounts:
    return TokenCounts(torch.zeros(vocab_size, dtype=torch.int64))


def skip_counted(texts: Iterator[str], counted: TokenCounts, source: str) -> None:
    """Take the texts that are in `counted` out of `texts`.

    Raises ValueError, naming the `source` of the counts, if they are others than were counted.
    """
    digest = ""
    for number in range(counted.num_texts):
        text = next(texts, None)
        if text is None:
            raise ValueError(f"{source} must be of this corpus: it counts {counted.num_texts} texts, here are {number}")
        digest = _longer_digest(digest, text)
    if digest != counted.digest:
        raise ValueError(
            f"{source} must be of this corpus, but its {counted.num_texts} texts are others: delete it to begin anew"
        )


def save_counts(path: Path, counted: TokenCounts, settings: Mapping[str, Any]) -> None:
    """Write the counts and the settings that they depend on; whole or not at all."""
    about = {"num_texts": str(counted.num_texts), "digest": counted.digest, "settings": json.dumps(settings)}
    with new_file(path) as partial:
        save_file({"counts": counted.counts}, partial, metadata=about)


def load_counts(path: Path, vocab_size: int, settings: Mapping[str, Any]) -> TokenCounts:
    """What `save_counts` wrote, nothing counted if there is no such file.

    Raises ValueError for another kind of file, and for counts with other settings, naming the first that differs.
    """
    if not path.exists():
        return no_counts(vocab_size)
    try:
        with safe_open(path, framework="pt") as file:
            about, counts = file.metadata() or {}, file.get_tensor("counts")
        found = parse_json(about["settings"], "its settings")
        counted = TokenCounts(counts, int(about["num_texts"]), about["digest"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} must be the state of a count, got {error}: delete it to begin anew") from None
    if not isinstance(found, dict) or counts.dtype != torch.int64 or bool((counts < 0).any()) or counted.num_texts < 0:
        raise ValueError(
            f"{path} must be the state of a count, with settings by name and int64 counts from 0, got "
            f"{type(found).__name__} and {counts.dtype} after {counted.num_texts} texts: delete it to begin anew"
        )
    for name, value in settings.items():
        if found.get(name) != value:
            raise ValueError(
                f"{path} must be of a count with {name} {value!r}, got {reprlib.repr(found.get(name))}: "
                "delete it to begin anew"
            )
    if counts.shape != (vocab_size,):
        raise ValueError(f"{path} must hold counts of {vocab_size} ids, got shape {tuple(counts.shape)}")
    return counted


def _longer_digest(digest: str, text: str) -> str:
    """The digest of one text more than `digest` is of."""
    return blake2b(digest.encode() + text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
