"""The compressed tokenizer against the one that it was written from."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nanospec.checkpoints.tokenizer import load_compressed_tokenizer, read_tokenizer

TEXT = "the model drafts words, the target checks the words: naïve → 3 ✓\n"
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"


@pytest.fixture
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def write(directory: Path, tokenizer: Tokenizer) -> None:
    (directory / "tokenizer.json.xz").write_bytes(lzma.compress(tokenizer.to_str().encode()))
    settings = {
        "tokenizer_class": "SomethingElse", "bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def test_the_compressed_tokenizer_is_the_one_written(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write(tmp_path, tokenizer)
    loaded = load_compressed_tokenizer(tmp_path)
    ids = loaded(TEXT)["input_ids"]
    assert ids == tokenizer.encode(TEXT).ids
    assert loaded.decode(ids) == TEXT
    assert (loaded.bos_token_id, loaded.eos_token_id, len(loaded)) == (0, 1, tokenizer.get_vocab_size())
    assert loaded("</s>", add_special_tokens=False)["input_ids"] == [1]


def test_the_chat_template_is_applied(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write(tmp_path, tokenizer)
    message = [{"role": "user", "content": "the words"}]
    loaded = load_compressed_tokenizer(tmp_path)
    assert loaded.apply_chat_template(message, tokenize=False) == "<s>[user]the words"
    ids = loaded.apply_chat_template(message, return_dict=False)
    assert ids == [0, *tokenizer.encode("[user]the words").ids]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.json.xz"])
def test_plain_and_compressed_files_are_read(tmp_path: Path, tokenizer: Tokenizer, name: str) -> None:
    text = tokenizer.to_str().encode()
    (tmp_path / name).write_bytes(lzma.compress(text) if name.endswith(".xz") else text)
    assert read_tokenizer(tmp_path / name).get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.json.xz"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"{}", lzma.compress(b"{}"), b"\xff\xfe"])
def test_garbage_is_a_value_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"tokenizer must be a tokenizer.json, plain or .xz, got .*{name}"):
        read_tokenizer(tmp_path / name)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.json.xz"])
def test_a_missing_file_is_not_found(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError):
        read_tokenizer(tmp_path / name)
