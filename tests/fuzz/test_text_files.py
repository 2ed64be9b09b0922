"""Damaged prompt files, static lists, tokenizers and JSON: read as what they say, or refused with a typed error."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nanospec.checkpoints.target import load_tokenizer
from nanospec.cli.prompts import read_prompts
from nanospec.untrusted_files import parse_json
from nanospec.vocab.router_file import FORMAT, LEVEL_ROWS, read_report, read_router, write_router
from nanospec.vocab.static_list import read_static_list
from tests.fuzz.cases import cases, result_or_refusal
from tests.fuzz.damage import changed_configs, changed_tensors, damaged, json_text, json_values
from tests.fuzz.valid_files import config_bytes, directory_of, torch_bytes
from tests.tiny_router import tiny_router

VOCAB_SIZE = 50
IDS = [5, 0, 49, 7]
PROMPTS = b"""{"prompt": "one \\u00e9"}

{"turns": ["two", "three"], "category": "x"}
{"prompt": "caf\xc3\xa9", "n": 1.5e3}
"""
SETTINGS: dict[str, Any] = {
    "bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ messages }}", "model_max_length": 64,
    "added_tokens_decoder": {"1": {"content": "</s>", "special": True}},
}  # fmt: skip
SETTING_KEYS = (
    "auto_map",
    "tokenizer_class",
    "extra_special_tokens",
    "vocab_file",
    "fast_tokenizer_files",
    "pad_token",
)


def tokenizer_json() -> dict[str, Any]:
    words = {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4, "Ġ": 5}
    tokenizer = Tokenizer(models.BPE(words, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return json.loads(tokenizer.to_str())


def lists() -> dict[str, bytes]:
    """One list of ids in every format."""
    return {
        "list.json": config_bytes(IDS), "list.txt": "".join(f"{token_id}\n" for token_id in IDS).encode(),
        "list.safetensors": save({"token_ids": torch.tensor(IDS)}), "list.pt": torch_bytes(IDS),
    }  # fmt: skip


@cases(200)
@given(text=st.one_of(damaged(PROMPTS), json_values.map(json_text), st.binary(max_size=30)))
def test_a_damaged_prompt_file_gives_text_or_a_refusal(text: bytes) -> None:
    with directory_of({"prompts.jsonl": text}) as directory:
        found = result_or_refusal(lambda: read_prompts(directory / "prompts.jsonl"))
    if not isinstance(found, Exception):
        assert all(prompt.text.strip() and prompt.text.encode() for prompt in found)


@pytest.mark.parametrize("name", sorted(lists()))
def test_a_damaged_list_gives_distinct_ids_or_a_refusal(name: str) -> None:
    @cases(80)
    @given(text=st.one_of(damaged(lists()[name]), json_values.map(json_text), st.binary(max_size=30)))
    def check(text: bytes) -> None:
        with directory_of({name: text}) as directory:
            found = result_or_refusal(lambda: read_static_list(directory / name, VOCAB_SIZE))
        if not isinstance(found, Exception):
            assert found.dtype == torch.int64
            assert 0 < len(found) == len(found.unique())
            assert 0 <= int(found.min()) <= int(found.max()) < VOCAB_SIZE

    check()


@cases(100)
@given(data=st.data())
def test_a_damaged_router_is_refused_or_is_whole(data: st.DataObject) -> None:
    weight = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    with directory_of({}) as directory:
        write_router(directory / "r.safetensors", tiny_router(weight, 1), (9, 6), {"a": 1})
        whole, tensors = (directory / "r.safetensors").read_bytes(), load_file(directory / "r.safetensors")
    shapes = {name: tensor.shape for name, tensor in tensors.items() if name != LEVEL_ROWS}
    format_said = {**FORMAT, "report": "{}"}
    changed = changed_tensors(tensors).map(lambda made: save({n: t.clone() for n, t in made.items()}, format_said))
    with directory_of({"r.safetensors": data.draw(st.one_of(damaged(whole, 900), changed))}) as directory:
        found = result_or_refusal(lambda: read_router(directory / "r.safetensors"))
        result_or_refusal(lambda: read_report(directory / "r.safetensors"))
    if not isinstance(found, Exception):
        state = found[0].state_dict()
        assert {name: part.shape for name, part in state.items()} == shapes
        assert all(part.isfinite().all() for part in state.values())


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.json.xz"])
def test_a_damaged_tokenizer_is_one_or_is_refused(name: str) -> None:
    whole = tokenizer_json()
    pack = lzma.compress if name.endswith(".xz") else bytes
    options = st.one_of(
        st.tuples(changed_configs(whole).map(pack), st.just(config_bytes(SETTINGS))),
        st.tuples(damaged(pack(config_bytes(whole))), st.just(config_bytes(SETTINGS))),
        st.tuples(st.just(pack(config_bytes(whole))), changed_configs(SETTINGS, SETTING_KEYS)),
    )

    @cases(80)
    @given(files=options)
    def check(files: tuple[bytes, bytes]) -> None:
        with directory_of({name: files[0], "tokenizer_config.json": files[1]}) as directory:
            found = result_or_refusal(lambda: load_tokenizer(directory))
        assert isinstance(found, PreTrainedTokenizerFast | Exception)

    check()


@cases(100)
@given(text=st.one_of(json_values.map(json_text), damaged(PROMPTS.split(b"\n")[2])))
def test_parsed_json_is_json(text: bytes) -> None:
    found = result_or_refusal(lambda: parse_json(text.decode("utf-8", "replace"), "x"))
    if not isinstance(found, Exception):
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        assert json.dumps(found, ensure_ascii=False).encode("utf-8")


def test_valid_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_bytes(PROMPTS)
    assert [prompt.text for prompt in read_prompts(tmp_path / "prompts.jsonl")] == ["one é", "two", "café"]
    (tmp_path / "tokenizer.json").write_bytes(config_bytes(tokenizer_json()))
    (tmp_path / "tokenizer_config.json").write_bytes(config_bytes(SETTINGS))
    assert load_tokenizer(tmp_path)("ab")["input_ids"] == [4]
