"""A refused file takes no more memory than a small multiple of its own size: measured in a process of its own."""

from __future__ import annotations

import json
import lzma
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from transformers import LlamaConfig, LlamaForCausalLM

from tests.test_torch_archive import Call, archive, rewritten, with_pickle

CLAIMED = 2**27  # bytes that each file would take if it were believed
MULTIPLE = 8
SLACK = 2**25  # bytes: what the first call of a reader imports and keeps
# One line per file: its name, how far the resident size rose while it was refused, in bytes, and the error.
PROGRAM = """
import sys
from pathlib import Path
from nanospec.checkpoints.files import read_tensors
from nanospec.checkpoints.target import load_target
from nanospec.checkpoints.tokenizer import read_tokenizer
from nanospec.vocab.static_list import read_static_list
READERS = {
    "tensors": read_tensors, "target": lambda path: load_target(path, device="cpu"),
    "tokenizer": lambda path: read_tokenizer(path / "tokenizer.json.xz"),
    "list": lambda path: read_static_list(path / "list.pt", 50),
}
def resident(kind):
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind)]
    return int(line.split()[1]) * 1024
for name in sys.argv[2:]:
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before = resident("VmRSS")
    try:
        READERS[name.split("-")[0]](Path(sys.argv[1], name))
    except ValueError as error:
        print(name, resident("VmHWM") - before, error)
"""


def files() -> dict[str, Mapping[str, bytes]]:
    """Directory -> its files; the part before the dash says what reads it."""
    zeros = bytes(CLAIMED)
    deflated = rewritten(
        archive({"a": torch.zeros(1)}),
        lambda name, old: zeros if name.endswith("data/0") else old,
        zipfile.ZIP_DEFLATED,
    )
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0}]
    return {
        "tensors-deflated": {"pytorch_model.bin": deflated},
        "tensors-call": {"pytorch_model.bin": with_pickle(Call(bytearray, CLAIMED))},
        "list-repeated": {"list.pt": archive(torch.zeros(1, dtype=torch.int64).expand(CLAIMED // 8))},
        "tokenizer-bomb": {"tokenizer.json.xz": lzma.compress(zeros, filters=filters)},
        "target-labels": language_model(num_labels=10**7),
        "target-head": language_model(head_dim=10**8),
    }


def language_model(**settings: int) -> Mapping[str, bytes]:
    config = LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4, vocab_size=9)
    tensors = {name: tensor.clone() for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    text = json.dumps({**config.to_dict(), **settings})
    return {"config.json": text.encode(), "model.safetensors": save(tensors, metadata={"format": "pt"})}


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of the resident size is in /proc")
def test_a_refused_file_takes_a_small_multiple_of_its_size(tmp_path: Path) -> None:
    sizes = {}
    for name, content in files().items():
        directory = tmp_path / name
        directory.mkdir()
        for file, data in content.items():
            (directory / file).write_bytes(data)
        sizes[name] = sum(path.stat().st_size for path in directory.iterdir())
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), *sizes], capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    grown = {line.split()[0]: int(line.split()[1]) for line in run.stdout.splitlines()}
    assert grown.keys() == sizes.keys(), run.stdout
    assert {name: size for name, size in grown.items() if size > MULTIPLE * sizes[name] + SLACK} == {}
