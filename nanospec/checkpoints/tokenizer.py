"""A tokenizer.json that is stored xz-compressed, beside its tokenizer_config.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from nanospec.checkpoints.files import read_json
from nanospec.untrusted_files import expand_xz, read_bytes

MAX_TOKENIZER_BYTES = 2**27  # four times that of a vocabulary of 262,144 ids
MESSAGE_END = "\n\n"  # behind every message, where a tokenizer has no chat template
NOT_SETTINGS = ("tokenizer_class", "backend", "tokenizer_object", "auto_map")


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json, plain or xz-compressed. FileNotFoundError, or ValueError if it is neither or
    too large."""
    with tokenizer_errors(f"tokenizer must be a tokenizer.json, plain or .xz, got {path}"):
        content = read_bytes(path, MAX_TOKENIZER_BYTES)
        return Tokenizer.from_str(
            (expand_xz(content, MAX_TOKENIZER_BYTES) if path.suffix == ".xz" else content).decode("utf-8")
        )


@contextmanager
def tokenizer_errors(message: str) -> Iterator[None]:
    """ValueError with `message` and the reason for whatever tokenizers says of malformed content: it raises a bare
    Exception, or panics with what is not even one. FileNotFoundError stays as it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{message}: {str(error)[:400]}") from error


def load_compressed_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """The transformers tokenizer of a directory with tokenizer.json.xz and tokenizer_config.json.

    Raises FileNotFoundError, or ValueError for a file that cannot be read or a setting that is none.
    """
    config = read_json(directory / "tokenizer_config.json")
    settings = {key: value for key, value in config.items() if key not in NOT_SETTINGS and not key.endswith("_file")}
    tokenizer = read_tokenizer(directory / "tokenizer.json.xz")
    with tokenizer_errors(f"tokenizer_config.json must hold settings of transformers, got {directory}"):
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a prompt, through the tokenizer's chat template where it has one."""
    if not has_chat_template(tokenizer):
        return tokenizer(text)["input_ids"]
    return encode_rendered(tokenizer, render_messages(tokenizer, [{"role": "user", "content": text}]))


def has_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def render_messages(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]) -> str:
    """The text that ends where the answer to the last of `messages` begins: by the tokenizer's chat template, or, where
    there is none, the contents one after the other, each followed by `MESSAGE_END`.

    messages: {"role": "system", "user" or "assistant", "content": text}. Raises ValueError for messages that the
    template refuses.
    """
    if not has_chat_template(tokenizer):
        return "".join(message["content"] + MESSAGE_END for message in messages)
    try:
        return str(tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False))
    except TemplateError as error:
        raise ValueError(f"messages must be what the tokenizer's chat template takes: {error}") from error


def encode_rendered(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of what `render_messages` returned: a chat template writes its special tokens itself."""
    ids: list[int] = tokenizer(text, add_special_tokens=not has_chat_template(tokenizer))["input_ids"]
    return ids
