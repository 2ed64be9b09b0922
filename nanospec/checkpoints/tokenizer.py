"""A tokenizer.json that is stored xz-compressed, beside its tokenizer_config.json."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json, plain or xz-compressed. ValueError if it is neither."""
    try:
        if path.suffix == ".xz":
            with lzma.open(path, "rt", encoding="utf-8") as file:
                return Tokenizer.from_str(file.read())
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except Exception as error:  # tokenizers raises a bare Exception for malformed content
        raise ValueError(f"tokenizer must be a tokenizer.json, plain or .xz, got {path}: {error}") from error


def load_compressed_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """The transformers tokenizer of a directory with tokenizer.json.xz and tokenizer_config.json."""
    settings = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    for key in ("tokenizer_class", "backend"):
        settings.pop(key, None)
    return PreTrainedTokenizerFast(tokenizer_object=read_tokenizer(directory / "tokenizer.json.xz"), **settings)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a prompt, through the tokenizer's chat template where it has one."""
    if not getattr(tokenizer, "chat_template", None):
        return tokenizer(text)["input_ids"]
    messages = [{"role": "user", "content": text}]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(rendered, add_special_tokens=False)["input_ids"]
