"""Reads a tokenizer.json, plain or xz-compressed."""

from __future__ import annotations

import lzma
from pathlib import Path

from tokenizers import Tokenizer


def read_tokenizer(path: Path) -> Tokenizer:
    if path.suffix == ".xz":
        with lzma.open(path, "rt", encoding="utf-8") as file:
            return Tokenizer.from_str(file.read())
    return Tokenizer.from_file(str(path))
