"""Finds and reads the files of a checkpoint directory or hub id. Nothing is unpickled beyond plain tensors."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from nanospec.torch_archive import load_torch_archive
from nanospec.untrusted_files import read_json_file, shown_name, shown_names

SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
# In order of preference; the last two hold Medusa heads.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "medusa_lm_head.safetensors", "medusa_lm_head.pt")
WEIGHT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
MAX_NAME = 255  # of a file
# What the reader of safetensors raises for a damaged file, or one that claims what no tensor can be.
_UNREADABLE = (SafetensorError, RuntimeError, ValueError, LookupError, OSError, TypeError, ArithmeticError, MemoryError)
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def resolve_checkpoint(path: str | Path, argument: str, weights: bool = True, revision: str | None = None) -> Path:
    """A local directory, or the local copy of a hub id, without its weights where they are not needed, at a revision
    where one is named.

    All that is in it are regular files and directories of its own. FileNotFoundError names `argument` and what was
    given; ValueError an entry that is a pipe or a device, or a link that leads elsewhere.
    """
    directory = Path(path).expanduser()
    if directory.is_dir():
        _refuse_foreign_entries(directory)
        return directory
    if directory.exists() or str(path).count("/") != 1 or str(path).startswith((".", "/", "~")):
        raise FileNotFoundError(f"{argument} must be a checkpoint directory or a hub id, got {str(path)!r}")
    try:
        patterns = [*SMALL_FILES, "*.safetensors"] if weights else list(SMALL_FILES)
        directory = Path(snapshot_download(str(path), revision=revision, allow_patterns=patterns))
        if weights and not any(directory.glob("*.safetensors")):
            patterns = [*SMALL_FILES, "*.bin", "*.pt"]
            directory = Path(snapshot_download(str(path), revision=revision, allow_patterns=patterns))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise FileNotFoundError(
            f"{argument} must be a checkpoint directory or a reachable hub id, got {str(path)!r}: {error}"
        ) from error
    _refuse_foreign_entries(directory)
    return directory


def _refuse_foreign_entries(directory: Path) -> None:
    """A link may lead to the directory itself, or from a snapshot of the hub's cache to the files of its repository."""
    home = directory.resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    for entry in (*directory.iterdir(), *(directory / "additional_chat_templates").glob("*")):
        if entry.is_symlink() and not any(entry.resolve().is_relative_to(place) for place in homes):
            raise ValueError(
                f"checkpoint must hold its files itself, got a link {entry.name!r} to another place in {home}"
            )
        if entry.exists() and not (entry.is_file() or entry.is_dir()):
            raise ValueError(f"checkpoint must hold regular files, got {entry.name!r} in {home}")


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a checkpoint as a dictionary."""
    try:
        return read_json(directory / "config.json")
    except FileNotFoundError:
        raise FileNotFoundError(f"checkpoint must hold a config.json, got none in {directory}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises as `read_json_file`; ValueError for any other value."""
    content = read_json_file(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def _any_name(name: str) -> bool:
    return True


def read_tensors(
    directory: Path, specs_only: bool = False, wanted: Callable[[str], bool] = _any_name
) -> dict[str, Tensor]:
    """The tensors of a checkpoint by their stored names, from one weight file or the shards that an index lists.

    safetensors are preferred. specs_only: meta tensors, which have names, shapes and dtypes but no numbers. wanted:
    which stored names to read; shards without any are not opened.

    Raises FileNotFoundError naming what is not there, ValueError for files that cannot be read or do not hold what
    their index lists.
    """
    first = _first_weight_file(directory)
    if first.suffix != ".json":
        return _read_weight_file(first, specs_only, wanted)
    places = {name: shard for name, shard in _read_index(first).items() if wanted(name)}
    tensors: dict[str, Tensor] = {}
    held: dict[str, str] = {}
    for shard in sorted(set(places.values())):
        for name, tensor in _read_weight_file(first.parent / shard, specs_only, wanted).items():
            if name in held:
                raise ValueError(
                    f"{first} must list shards that hold {shown_name(name)!r} once, got it in {held[name]} and {shard}"
                )
            tensors[name], held[name] = tensor, shard
    missing, unlisted = shown_names(places.keys() - held.keys()), shown_names(held.keys() - places.keys())
    if missing or unlisted:
        raise ValueError(f"{first} must list what its shards hold: missing {missing}, not listed {unlisted}")
    misplaced = [name for name, shard in held.items() if places[name] != shard]
    if misplaced:
        raise ValueError(f"{first} must list the shard of {shown_name(misplaced[0])!r}: {held[misplaced[0]]}")
    return tensors


def name_difference(expected: Set[str], found: Set[str]) -> str:
    """What an error says of two sets of tensors: the first of each that the other lacks. Empty if they are one set."""
    missing, unused = shown_names(expected - found), shown_names(found - expected)
    return f"missing tensors {missing}, unused tensors {unused}" if missing or unused else ""


def has_weights(directory: Path) -> bool:
    return any(_weight_files(directory))


def _weight_files(directory: Path) -> Iterator[Path]:
    """Those of `WEIGHT_FILES` that are there, each before the index of its shards."""
    paths = (directory / f"{name}{ending}" for name in WEIGHT_FILES for ending in ("", ".index.json"))
    return (path for path in paths if path.exists())


def _first_weight_file(directory: Path) -> Path:
    for path in _weight_files(directory):
        return path
    raise FileNotFoundError(f"checkpoint must hold one of {', '.join(WEIGHT_FILES)}, got none in {directory}")


def _read_index(path: Path) -> dict[str, str]:
    """Tensor name -> file name of its shard; all shards are there."""
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{path} must hold a 'weight_map' of tensor names, got {type(places).__name__}")
    for shard in places.values():
        if not isinstance(shard, str) or not is_file_name(shard) or not shard.endswith((".safetensors", ".bin")):
            raise ValueError(f"{path} must list shards by file name, got {reprlib.repr(shard)}")
    missing = shown_names({shard for shard in places.values() if not (path.parent / shard).is_file()})
    if missing:
        raise FileNotFoundError(f"checkpoint must hold all shards that {path.name} lists, missing {missing}")
    return places


def is_file_name(name: str) -> bool:
    """Whether a name stands for an entry of the directory that it is read in, whatever the system."""
    return 0 < len(name.encode()) <= MAX_NAME and not set(name) & set("/\\:\0") and name not in (".", "..")


def _read_weight_file(path: Path, specs_only: bool, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    tensors = _read_whole_file(path, specs_only) if wanted is _any_name or specs_only else _read_parts(path, wanted)
    return {name: tensor for name, tensor in tensors.items() if wanted(name)}


def _read_parts(path: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """As `_read_whole_file`, but of a safetensors file only what is wanted."""
    if path.suffix != ".safetensors":
        return _read_whole_file(path, specs_only=False)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in filter(wanted, file.keys())}
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None


def _read_whole_file(path: Path, specs_only: bool) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return _read_header(path) if specs_only else load_file(path)
        tensors = load_torch_archive(path, specs_only)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{path} must hold a dictionary of tensors, got {type(tensors).__name__}")
    if not all(isinstance(name, str) for name in tensors):
        raise ValueError(f"{path} must hold tensors by name, got {reprlib.repr(list(tensors))}")
    return tensors


def _unreadable(path: Path, error: Exception) -> ValueError:
    reason = (str(error) or type(error).__name__).splitlines()[0][:400]
    return ValueError(f"{path} must be a readable weight file, got {reason}")


def _read_header(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file, torch.device("meta"):
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        return {name: torch.empty(s.get_shape(), dtype=_DTYPES[s.get_dtype()]) for name, s in slices.items()}


def check_weights(tensors: Mapping[str, Tensor], source: Path | str) -> None:
    """ValueError naming the first tensor that is no vector or matrix of plain floating-point numbers, or that holds a
    NaN or an infinity."""
    for name, tensor in tensors.items():
        if tensor.dim() not in (1, 2):
            raise ValueError(
                f"weights must be vectors or matrices, got {tuple(tensor.shape)} in {shown_name(name)!r} of {source}"
            )
        if tensor.dtype not in WEIGHT_DTYPES:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in WEIGHT_DTYPES)
            raise ValueError(f"weights must be {names}, got {tensor.dtype} in {shown_name(name)!r} of {source}")
    check_finite(tensors, source)


def check_finite(tensors: Mapping[str, Tensor], source: Path | str) -> None:
    """ValueError naming the first tensor with a NaN or an infinity."""
    for name, tensor in tensors.items():
        values = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # float8 has no isfinite
        if tensor.is_floating_point() and not bool(values.isfinite().all()):
            raise ValueError(f"weights must be finite, got NaN or infinity in {shown_name(name)!r} of {source}")
