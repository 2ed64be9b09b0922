"""Ids that the files of a checkpoint name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nanospec.checkpoints.draft_ids import read_eos_ids, read_id_list, special_ids
from nanospec.vocab_selector import build_vocab_selector
from tests.byte_tokenizer import BOS, EOS, byte_tokenizer
from tests.checkpoints.eagle3_files import SAYABLE, VOCAB, full_vocabulary, official, speculators, write_draft


@pytest.mark.parametrize("left_out", [None, "d2t", "t2d"])
def test_a_draft_of_few_ids_is_a_list_of_them(tmp_path: Path, left_out: str | None) -> None:
    for tensors in (official(), speculators()):
        tensors.pop(left_out or "", None)
        assert read_id_list(write_draft(tmp_path, tensors), VOCAB).tolist() == SAYABLE.tolist()


def test_a_draft_of_all_ids_is_a_list_of_all(tmp_path: Path) -> None:
    assert read_id_list(write_draft(tmp_path, full_vocabulary(with_maps=True)), VOCAB).tolist() == list(range(VOCAB))


def test_a_file_is_the_list_that_it_holds(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[5, 3]")
    assert read_id_list(str(tmp_path / "list.json"), VOCAB).tolist() == [5, 3]


def test_a_directory_is_a_vocabulary(tmp_path: Path) -> None:
    vocab = build_vocab_selector(f"static:{write_draft(tmp_path, official())}", torch.ones(VOCAB, 4))
    assert vocab.select().draft_ids[0].tolist() == SAYABLE.tolist()
    assert vocab.name == "static-9"


def test_what_is_no_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a must hold a draft with 'd2t' or 't2d' to be a list of ids"):
        read_id_list(write_draft(tmp_path / "a", full_vocabulary(with_maps=False)), VOCAB)
    tensors = {name: tensor for name, tensor in official().items() if name != "t2d"}
    with pytest.raises(ValueError, match="d2t must lead to ids between 0 and 29, got 35"):
        read_id_list(write_draft(tmp_path / "b", tensors), 30)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="checkpoint must hold one of"):
        read_id_list(tmp_path / "empty", VOCAB)


def test_ids_that_end_a_text_are_those_of_both_configs(tmp_path: Path) -> None:
    assert read_eos_ids(tmp_path) == []
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7, "text_config": {"eos_token_id": 9}}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    assert read_eos_ids(tmp_path) == [5, 7, 9]


def test_special_ids_are_the_ends_and_what_the_tokenizer_names() -> None:
    assert special_ids(byte_tokenizer(), [7]) == [7, BOS, EOS]


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("value", [1.7, True, "</s>", [[1]], [2, -1], {"id": 1}])
def test_an_end_that_is_no_id_is_refused_with_its_file(tmp_path: Path, name: str, value: object) -> None:
    (tmp_path / name).write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(ValueError, match=f"{name}: eos_token_id must be an id or a list of ids, got"):
        read_eos_ids(tmp_path)
