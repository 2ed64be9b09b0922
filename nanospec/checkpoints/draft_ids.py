"""Which ids matter, as the files of a checkpoint say it: those that a reduced draft scores, those that end a text."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nanospec.checkpoints.detect import normalise_names
from nanospec.checkpoints.draft_vocab_map import read_vocab_map
from nanospec.checkpoints.files import read_json, read_tensors
from nanospec.untrusted_files import shown_names
from nanospec.vocab.static_list import read_static_list

EOS_FILES = ("generation_config.json", "config.json")


def read_id_list(path: str | Path, vocab_size: int) -> Tensor:
    """As `read_static_list`; of a directory, the ids that the draft in it scores, int64 [N], ascending.

    Raises what `read_static_list` raises, and for a directory ValueError for a draft without d2t and t2d, or one whose
    maps do not fit a vocabulary of `vocab_size` ids; FileNotFoundError for no draft.
    """
    path = Path(path)
    if not path.is_dir():
        return read_static_list(path, vocab_size)
    tensors = normalise_names(read_tensors(path))
    d2t, t2d = tensors.get("d2t"), tensors.get("t2d")
    if d2t is not None:
        num_rows = d2t.shape[0] if d2t.dim() else 0
    elif t2d is not None:
        num_rows = int(t2d.ne(0).sum())
    else:
        raise ValueError(
            f"{path} must hold a draft with 'd2t' or 't2d' to be a list of ids, got {shown_names(tensors)}"
        )
    ids = read_vocab_map(d2t, t2d, num_rows, vocab_size)
    return torch.arange(vocab_size) if ids is None else ids


def read_eos_ids(directory: Path) -> list[int]:
    """Ids that end a text by the generation config and the config in a directory, none where both are silent.

    Raises ValueError, naming the file, for what is neither an id nor a list of them.
    """
    found: list[int] = []
    for name in EOS_FILES:
        path = directory / name
        config = read_json(path) if path.exists() else {}
        nested = config.get("text_config")
        for part in (config, nested if isinstance(nested, dict) else {}):
            found += _ids_of(part.get("eos_token_id"), path)
    return list(dict.fromkeys(found))


def _ids_of(value: Any, path: Path) -> list[int]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token_id in ids:
        if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
            raise ValueError(f"{path}: eos_token_id must be an id or a list of ids, got {reprlib.repr(value)}")
    return ids


def special_ids(tokenizer: PreTrainedTokenizerBase, eos_ids: list[int]) -> list[int]:
    """What a list of frequent ids always holds: `eos_ids`, then the tokens that the tokenizer names special (its own
    EOS, BOS, padding ..). Reserved ones, which have no name, are not among them."""
    return list(dict.fromkeys([*eos_ids, *sorted(tokenizer.all_special_ids)]))
