"""Valid tiny checkpoints of every format, as file names and bytes, and the target that they draft for."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from nanospec.drafters.drafter import Drafter
from nanospec.target import Target
from tests.checkpoints import test_eagle as eagle_files
from tests.checkpoints import test_medusa as medusa_files
from tests.checkpoints.eagle3_files import CONFIG, full_vocabulary, official, speculators, speculators_config

Tensors = dict[str, Tensor]
Config = dict[str, Any]
LANGUAGE_MODEL = {
    "vocab_size": 37, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


@cache
def target() -> Target:
    """Hidden size 16, 37 ids, eight layers, float32."""
    torch.manual_seed(0)
    config = LlamaConfig(**{**LANGUAGE_MODEL, "num_hidden_layers": 8})
    return Target(LlamaForCausalLM(config).requires_grad_(False))


@cache
def drafts() -> dict[str, tuple[str, Tensors, Config]]:
    """Format -> weight file, tensors, config."""
    heads = medusa_files.heads()
    return {
        "EAGLE-1": ("pytorch_model.bin", eagle_files.published_tensors(), eagle_files.CONFIG),
        "EAGLE-1, safetensors": (
            "model.safetensors",
            eagle_files.published_tensors(2, qkv_bias=True),
            eagle_files.CONFIG,
        ),
        "EAGLE-3": ("model.safetensors", official(), CONFIG),
        "EAGLE-3, headless": ("model.safetensors", headless(), CONFIG),
        "EAGLE-3, pickled": ("pytorch_model.bin", official(), CONFIG),
        "speculators": ("model.safetensors", speculators(2, qk_norm=True), speculators_config()),
        "Medusa": ("medusa_lm_head.pt", medusa_files.published(heads), medusa_files.CONFIG),
        "Medusa of vLLM": ("model.safetensors", medusa_files.vllm(heads, "first"), {"original_lm_head": True}),
    }


def headless() -> Tensors:
    """An EAGLE-3 draft that borrows the target's head."""
    return {name: tensor for name, tensor in full_vocabulary(with_maps=True).items() if name != "lm_head.weight"}


@cache
def language_model() -> tuple[Tensors, Config]:
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**LANGUAGE_MODEL))
    return dict(model.state_dict()), {**model.config.to_dict(), "architectures": ["LlamaForCausalLM"]}


class Named(dict[str, Tensor]):
    """Tensors by name, which a failing test prints by their shapes."""

    def __repr__(self) -> str:
        return repr({name: (tuple(tensor.shape), tensor.dtype) for name, tensor in self.items()})


def weight_bytes(file: str, tensors: Mapping[str, Tensor]) -> bytes:
    if file.endswith(".safetensors"):
        return save({name: tensor.clone() for name, tensor in tensors.items()}, metadata={"format": "pt"})
    return torch_bytes(dict(tensors))


def torch_bytes(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@contextmanager
def directory_of(files: Mapping[str, bytes]) -> Iterator[Path]:
    """A directory that no earlier case has used: what that one read may still be mapped into memory."""
    with tempfile.TemporaryDirectory() as directory:
        for name, content in files.items():
            Path(directory, name).write_bytes(content)
        yield Path(directory)


def config_bytes(config: object) -> bytes:
    return json.dumps(config).encode()


def same_draft(found: Drafter, expected: Drafter) -> bool:
    """Whether two drafters hold the same numbers at the same places and say the same ids."""
    own, other = found.state_dict(), expected.state_dict()
    maps = [getattr(drafter, "target_ids", None) for drafter in (found, expected)]
    same_maps = maps[0] is maps[1] or (maps[0] is not None and maps[1] is not None and torch.equal(maps[0], maps[1]))
    same = own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)
    return type(found) is type(expected) and same and same_maps
