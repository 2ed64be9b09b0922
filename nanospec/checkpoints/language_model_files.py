"""What transformers is about to read, looked at first: it trusts the sizes and file names of a config."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from nanospec.checkpoints.detect import count_layers, normalise_names
from nanospec.checkpoints.files import is_file_name, read_json
from nanospec.checkpoints.tokenizer import MAX_TOKENIZER_BYTES
from nanospec.untrusted_files import shown_name

log = logging.getLogger(__name__)
MAX_LAYERS = 2**10
MAX_COUNT = 2**16  # of anything a config counts (num_...): heads, experts, labels
PACKED = 8  # weights that one stored number may hold, where they are quantised
SPARE = 2**20  # numbers of a model that no file holds, such as rotations
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
SIDE_FILES = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# Implementations of attention and experts that are part of transformers and torch; others are fetched and run.
_SWITCHES = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
_OWN = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "grouped_mm", "batched_mm")


def check_config_claims(config: Mapping[str, Any], directory: Path, argument: str) -> None:
    """What transformers would trust a config.json and the small files beside it with, before it makes anything of them.

    Raises ValueError for counts that no model has, weights in other files than those that are checked, attention or
    experts of other packages, and small files that are no JSON objects; NotImplementedError for an adapter. Code that
    an `auto_map` names is not run, which is logged.
    """
    if (directory / "adapter_config.json").exists():
        raise NotImplementedError(
            f"{argument} must be a whole model, got an adapter beside it in {directory}: merge it"
        )
    if "auto_map" in config:
        log.warning("%s: code of its own (auto_map) is not run, transformers has the architecture", directory)
    for key, value in _settings(config):
        most = MAX_LAYERS if key == "num_hidden_layers" else MAX_COUNT
        if key.startswith("num_") and isinstance(value, int | float) and not value <= most:
            raise ValueError(f"{argument} config {key} must be at most {most}, got {value}")
        if key == "transformers_weights":
            raise ValueError(f"{argument} config must not name its weight files, got {key} {value!r:.80}")
        if key in _SWITCHES and value not in _OWN:
            raise ValueError(f"{argument} config {key} must be part of transformers, got {value!r:.80}")
    for name in SIDE_FILES:
        if (directory / name).exists():
            _check_side_file(read_json(directory / name), name)
    if any(entry.name.startswith("shard-") and entry.suffix == ".safetensors" for entry in directory.iterdir()):
        raise ValueError(f"{argument} must hold its weights in one file or with an index, got shard-*.safetensors")


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """All settings, those of nested configs too."""
    for key, value in config.items():
        yield key, value
        if isinstance(value, Mapping):
            yield from _settings(value)


def _check_side_file(content: Mapping[str, Any], name: str) -> None:
    files = content.get("fast_tokenizer_files", [])
    if not isinstance(files, list) or not all(isinstance(file, str) and is_file_name(file) for file in files):
        raise ValueError(f"{name} fast_tokenizer_files must be file names, got {files!r:.80}")


def check_tokenizer_sizes(directory: Path) -> None:
    """Raises ValueError for a tokenizer larger than any vocabulary makes it."""
    for name in TOKENIZER_FILES:
        path = directory / name
        if path.exists() and path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise ValueError(f"{path} must be at most {MAX_TOKENIZER_BYTES} bytes, got {path.stat().st_size}")


def check_layers_are_stored(config: PreTrainedConfig, specs: Mapping[str, Tensor], argument: str) -> None:
    """Raises ValueError unless the tensors are of as many layers as the config says: fewer cannot run, more would be
    left out without a word. Also for tensors that are no weights, unless the config says how they are packed."""
    num_layers, num_stored = config.get_text_config().num_hidden_layers, count_layers(normalise_names(specs))
    if num_layers != num_stored:
        raise ValueError(f"{argument} config num_hidden_layers must be {num_stored} as in its files, got {num_layers}")
    if getattr(config, "quantization_config", None) is not None:
        return
    for name, tensor in specs.items():
        if not tensor.is_floating_point():
            raise ValueError(
                f"{argument} weights must be floating-point numbers, got {tensor.dtype} in {shown_name(name)!r}"
            )


def check_size_is_stored(skeleton: PreTrainedModel, specs: Mapping[str, Tensor], argument: str) -> None:
    """Raises ValueError for a model, on the meta device, that is larger than its files can fill."""
    parts = {id(part): part.numel() for part in (*skeleton.parameters(), *skeleton.buffers())}
    num_claimed, num_stored = sum(parts.values()), sum(tensor.numel() for tensor in specs.values())
    if num_claimed > PACKED * num_stored + SPARE:
        raise ValueError(
            f"{argument} config must describe the model in its files, got sizes of {num_claimed} numbers for "
            f"{num_stored} stored"
        )
