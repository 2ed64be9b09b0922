"""The command end to end on a tiny pair in directories."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from nanospec import SpeculativeDecoder
from nanospec.checkpoints.save import save_drafter
from nanospec.cli.main import app
from nanospec.target import Target
from nanospec.vocab.router_file import read_report, read_router
from tests.tiny_pair import VOCAB_SIZE, tiny_drafter, tiny_model

FEW = ("--num-states", "120", "--levels", "3", "--num-clusters", "6", "--hidden-size", "8", "--rows", "20,12")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Options that name a tiny pair and its corpus; every word is a token."""
    directory = tmp_path_factory.mktemp("pair")
    model = tiny_model(3, dtype=torch.float32)
    model.save_pretrained(directory / "target")
    words = Tokenizer(models.WordLevel({f"w{token}": token for token in range(VOCAB_SIZE)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(directory / "target")
    save_drafter(tiny_drafter(Target(model), 2, std=0.02), directory / "draft")
    generator = torch.Generator().manual_seed(0)
    with (directory / "corpus.jsonl").open("w") as corpus:
        for _ in range(40):
            text = [f"w{token}" for token in torch.randint(VOCAB_SIZE, (30,), generator=generator).tolist()]
            corpus.write(json.dumps({"prompt": " ".join(text[:5]), "response": " ".join(text[5:])}) + "\n")
    names = {"--target": "target", "--draft": "draft", "--corpus": "corpus.jsonl"}
    return [str(part) for option, name in names.items() for part in (option, directory / name)]


def run(*arguments: str):
    return CliRunner().invoke(app, ["train-router", *arguments])


def test_a_router_is_trained_written_and_drafted_with(pair, tmp_path):
    out = tmp_path / "router.safetensors"
    result = run(*pair, *FEW, "--out", str(out), "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report == read_report(out)
    assert (report["clusters"], report["states"], report["held_out"]) == (6, 120, "a part of the corpus")
    assert len(report["recall"]["target"]["by_level"][0]) == 3
    decoder = SpeculativeDecoder.from_pretrained(pair[1], pair[3], vocab=f"routed:{out}", tree=(3, 3, 10))
    assert decoder.vocab.num_rows == (20, 12, 12)
    plain = decoder.generate_autoregressive([1, 2, 3], max_new_tokens=20)
    assert decoder.generate([1, 2, 3], max_new_tokens=20).token_ids == plain.token_ids


def test_a_reader_gets_a_table(pair, tmp_path):
    result = run(*pair, *FEW, "--ahead", "--out", str(tmp_path / "router.safetensors"), "--heldout", pair[5])
    assert result.exit_code == 0, result.output
    assert "6 clusters, hidden size 8, 120 states" in result.stdout
    assert "recall on 3" in result.stdout
    assert read_router(tmp_path / "router.safetensors")[0].ahead is not None
    assert {"target_ahead", "draft_ahead"} < read_report(tmp_path / "router.safetensors")["recall"].keys()
    assert "the target's first choice, by level" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "router.pt"), "router file must end in .safetensors, got router.pt"),
        (("--out", "none/x.safetensors"), "router file must be in a directory that exists"),
        (("--rows", "5,x"), "rows must be N or N,N,.."),
        (("--rows", "62"), r"num_rows must be whole numbers in [1, 61]"),
        (("--num-clusters", "62"), "num_clusters must be in [1, 61], got 62"),
        (("--levels", "1", "--ahead"), "--levels must be at least 2 with --ahead, got 1"),
        (("--levels", "0"), "--num-states and --levels must be at least 1"),
        (("--corpus", "none.jsonl"), "corpus must be a file of JSON lines, got none.jsonl"),
        (("--draft", "prompt-lookup"), "draft must score ids with a head, got prompt-lookup"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(pair, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    given = [*pair, *FEW, "--out", "router.safetensors", *arguments]
    result = run(*given)
    assert result.exit_code == 2
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []
