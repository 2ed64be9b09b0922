"""Files that hold a router: one safetensors file, its weights and clusters as tensors, how it was made as metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanospec.all_or_nothing import new_file
from nanospec.untrusted_files import parse_json, shown_names
from nanospec.vocab.router import NUM_SAMPLED_ROWS, Router

FORMAT = {"format": "nanospec-router", "version": "1"}
REPORT = "report"
LEVEL_ROWS = "num_rows"
AHEAD = ("ahead.0.weight", "ahead.0.bias", "ahead.2.weight", "ahead.2.bias")  # all of them or none
_DTYPES = {"token_ids": torch.int64, "sizes": torch.int64, LEVEL_ROWS: torch.int64}


def write_router(path: str | Path, router: Router, num_rows: tuple[int, ...], report: dict[str, Any]) -> None:
    """Writes `router`, the rows of each tree level that it was made for, and `report`, anything that JSON can say.

    What was there is replaced in one step, or stays. Raises ValueError for another suffix than .safetensors, OSError
    where nothing can be written.
    """
    path = checked_router_path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in router.state_dict().items()}
    tensors[LEVEL_ROWS] = torch.tensor(num_rows)
    with new_file(path) as partial:
        save_file(tensors, partial, {**FORMAT, REPORT: json.dumps(report)})


def checked_router_path(path: str | Path) -> Path:
    """Where a router can be written. Raises ValueError for another suffix, FileNotFoundError without its directory."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"router file must end in .safetensors, got {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"router file must be in a directory that exists, got {path}")
    return path


def read_router(path: str | Path) -> tuple[Router, tuple[int, ...]]:
    """The router, float32 on the CPU, and the rows of each tree level that it was made for.

    Raises FileNotFoundError for a missing file; ValueError naming the path for one that is damaged or no router, whose
    tensors do not fit each other, or that holds a NaN or an infinity.
    """
    tensors, _ = _read(Path(path))
    _check_tensors(tensors, path)
    num_rows = tuple(tensors.pop(LEVEL_ROWS).tolist())
    token_ids, sizes, sample = tensors["token_ids"], tensors["sizes"], tensors["head_sample"]
    if not num_rows or not all(1 <= rows <= token_ids.shape[0] for rows in num_rows):
        raise ValueError(f"{path}: {LEVEL_ROWS} must be in [1, {token_ids.shape[0]}], got {num_rows}")
    try:
        router = Router(token_ids, sizes, sample, tensors["hidden.weight"].shape[0], AHEAD[0] in tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    router.load_state_dict(tensors)
    return router.requires_grad_(False), num_rows


def read_report(path: str | Path) -> dict[str, Any]:
    """How a router was made and what it recalls. Raises as `read_router` for what is no router file."""
    _, metadata = _read(Path(path))
    try:
        return parse_json(metadata[REPORT], f"{path}: metadata {REPORT!r}")
    except KeyError:
        raise ValueError(f"{path}: metadata {REPORT!r} must be JSON, got none") from None


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"router file not found: {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if {key: metadata.get(key) for key in FORMAT} != FORMAT:
            raise ValueError(f"its metadata must say {FORMAT}, got {shown_names(metadata)}")
        return load_file(path), metadata
    except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read as a router: {error}") from None


def _check_tensors(tensors: dict[str, Tensor], path: str | Path) -> None:
    """ValueError naming the first tensor that is missing, too many, or of another shape or dtype than the others ask
    for, or that is not finite."""
    names = {
        "hidden.weight",
        "hidden.bias",
        "score.weight",
        "score.bias",
        "token_ids",
        "sizes",
        "head_sample",
        LEVEL_ROWS,
    }
    if tensors.keys() not in (names, names | set(AHEAD)):
        raise ValueError(f"{path}: a router must hold {sorted(names)}, got {shown_names(tensors)}")
    for name in ("hidden.weight", "head_sample"):
        if tensors[name].dim() != 2 or 0 in tensors[name].shape:
            raise ValueError(f"{path}: {name} must be a matrix, got shape {tuple(tensors[name].shape)}")
    for name in ("token_ids", "sizes", LEVEL_ROWS):
        if tensors[name].dim() != 1 or tensors[name].shape[0] == 0:
            raise ValueError(f"{path}: {name} must be 1-D and not empty, got shape {tuple(tensors[name].shape)}")
    hidden_size, state_size = tensors["hidden.weight"].shape
    num_clusters = tensors["sizes"].shape[0]
    shapes = {
        "hidden.bias": (hidden_size,),
        "score.weight": (num_clusters, hidden_size),
        "score.bias": (num_clusters,),
        "head_sample": (min(NUM_SAMPLED_ROWS, tensors["token_ids"].shape[0]), state_size),
    }
    ahead = (hidden_size, 2 * state_size), (hidden_size,), (num_clusters, hidden_size), (num_clusters,)
    shapes |= dict(zip(AHEAD, ahead, strict=True))
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes.get(name, tuple(tensor.shape)):
            raise ValueError(f"{path}: {name} must be {shapes[name]}, got {tuple(tensor.shape)}")
        if tensor.dtype != _DTYPES.get(name, torch.float32):
            raise ValueError(f"{path}: {name} must be {_DTYPES.get(name, torch.float32)}, got {tensor.dtype}")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"{path}: {name} must be finite, got NaN or infinity")
