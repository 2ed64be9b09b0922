"""The training commands from their options to a draft that loads, on a tiny target directory."""

from __future__ import annotations

import json
import lzma
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from nanospec.checkpoints import load_drafter
from nanospec.checkpoints.target import load_target
from nanospec.drafters.eagle3 import Eagle3Drafter
from nanospec.drafters.medusa import MedusaDrafter
from nanospec.training import train_causal_lm, train_eagle, train_eagle3, train_medusa
from nanospec.training.corpus import tokenize_corpus
from nanospec.training.draft_run import run_training
from nanospec.training.draft_trainer import DraftTrainingSettings
from tests.tiny_pair import EAGLE3_LAYERS, VOCAB_SIZE, tiny_model

WORDS = [f"w{number}" for number in range(VOCAB_SIZE - 5)]
SIZES = ["--tokens-per-step", "32", "--seq-len", "16", "--num-drawn", "20", "--no-compile"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """target/ and train.jsonl."""
    directory = tmp_path_factory.mktemp("training")
    tiny_model(0, num_layers=EAGLE3_LAYERS, dtype=torch.bfloat16).save_pretrained(directory / "target")
    ids = {word: index for index, word in enumerate(["<unk>", "<s>", "</s>", "[INST]", "[/INST]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    (directory / "target" / "tokenizer.json.xz").write_bytes(lzma.compress(tokenizer.to_str().encode()))
    (directory / "target" / "tokenizer_config.json").write_text("{}")
    records = [{"prompt": WORDS[index], "response": " ".join(WORDS[index : index + 9])} for index in range(20)]
    (directory / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return directory


def train(monkeypatch: pytest.MonkeyPatch, directory: Path, command: ModuleType, out: Path, *options: str) -> object:
    files = ["--corpus", str(directory / "train.jsonl"), "--target", str(directory / "target"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [command.__name__, *files, *SIZES, "--max-steps", "2", *options])
    command.main()
    target, tokenizer = load_target(directory / "target")
    return load_drafter(out / "draft", target, tokenizer=tokenizer)


@pytest.mark.parametrize("command", [train_eagle, train_eagle3, train_medusa, train_causal_lm])
def test_a_command_leaves_a_draft_that_loads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, directory: Path, command: ModuleType
) -> None:
    drafter = train(monkeypatch, directory, command, tmp_path / "run")
    assert drafter.name == command.__name__.rpartition("train_")[2].replace("_", "-")


def test_options_of_one_family_shape_its_draft(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, directory: Path
) -> None:
    eagle3 = train(monkeypatch, directory, train_eagle3, tmp_path / "eagle3", "--feature-layers", "1", "5")
    assert isinstance(eagle3, Eagle3Drafter)
    assert eagle3.feature_layers == (1, 5)
    medusa = train(monkeypatch, directory, train_medusa, tmp_path / "medusa", "--num-heads", "3", "--num-layers", "2")
    assert isinstance(medusa, MedusaDrafter)
    assert (medusa.shape.num_heads, medusa.shape.num_layers) == (3, 2)


def test_a_run_in_two_parts_takes_the_steps_that_are_left(tmp_path: Path, directory: Path) -> None:
    target, tokenizer = load_target(directory / "target")
    assert tokenizer is not None
    target.requires_grad_(False)
    corpus = tokenize_corpus(directory / "train.jsonl", tokenizer.backend_tokenizer, tmp_path)
    settings = DraftTrainingSettings(16, num_drawn=20, compile=False)
    for max_steps in (2, 3):
        trainer, _ = train_medusa.medusa_trainer(target, corpus.counts(VOCAB_SIZE), settings, num_heads=2)
        run = run_training(trainer, corpus, tmp_path / "run", 60, 32, max_steps)
        assert (run.num_steps, run.num_tokens) == (max_steps, 32 * max_steps)
