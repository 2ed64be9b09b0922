"""Finds and reads the files of a checkpoint directory or hub id. Nothing is unpickled beyond plain tensors."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def resolve_checkpoint(path: str | Path, argument: str) -> Path:
    """A local directory, or the local copy of a hub id. FileNotFoundError names `argument` and what was given."""
    directory = Path(path).expanduser()
    if directory.is_dir():
        return directory
    if directory.exists() or str(path).count("/") != 1 or str(path).startswith((".", "/", "~")):
        raise FileNotFoundError(f"{argument} must be a checkpoint directory or a hub id, got {str(path)!r}")
    try:
        directory = Path(snapshot_download(str(path), allow_patterns=[*SMALL_FILES, "*.safetensors"]))
        if not any(directory.glob("*.safetensors")):
            directory = Path(snapshot_download(str(path), allow_patterns=[*SMALL_FILES, "*.bin"]))
        return directory
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise FileNotFoundError(
            f"{argument} must be a checkpoint directory or a reachable hub id, got {str(path)!r}: {error}"
        ) from error


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a checkpoint as a dictionary."""
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"checkpoint must hold a config.json, got none in {directory}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be JSON, got {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(config).__name__}")
    return config


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of `model.safetensors`, else of `pytorch_model.bin`."""
    for name in WEIGHT_FILES:
        path = directory / name
        if path.exists():
            return _read_weight_file(path)
    raise FileNotFoundError(f"checkpoint must hold one of {', '.join(WEIGHT_FILES)}, got none in {directory}")


def _read_weight_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} must be a readable weight file, got {reason}") from None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{path} must hold a dictionary of tensors, got {type(tensors).__name__}")
    return tensors


def check_finite(tensors: dict[str, Tensor], source: Path | str) -> None:
    """ValueError naming the first tensor with a NaN or an infinity."""
    for name, tensor in tensors.items():
        values = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # float8 has no isfinite
        if tensor.is_floating_point() and not bool(values.isfinite().all()):
            raise ValueError(f"weights must be finite, got NaN or infinity in {name!r} of {source}")
