"""Files that hold a list of token ids, most frequent first; a bad list is refused with its first offender."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Callable, Sequence
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from nanospec.all_or_nothing import new_file
from nanospec.torch_archive import load_torch_archive
from nanospec.untrusted_files import read_bytes, read_json_file, shown_names

TENSOR_NAME = "token_ids"
WRITTEN = (".safetensors", ".pt")
MAX_IDS = 2**22  # repetitions included
MAX_LIST_BYTES = 2**25  # of a text
log = logging.getLogger(__name__)


def check_token_ids(ids: Sequence[object], vocab_size: int | None, source: str) -> None:
    """Raise TypeError or ValueError naming `source` and the first id that is no integer or out of range; if there is
    none, the first that is repeated."""
    _check_range(ids, vocab_size, source)
    first_pos: dict[object, int] = {}
    for pos, token_id in enumerate(ids):
        if token_id in first_pos:
            earlier = first_pos[token_id]
            raise ValueError(
                f"{source}: token ids must be distinct, got {token_id} at index {earlier} and again at {pos}"
            )
        first_pos[token_id] = pos


def _check_range(ids: Sequence[object], vocab_size: int | None, source: str) -> None:
    for pos, token_id in enumerate(ids):
        if isinstance(token_id, bool) or not isinstance(token_id, int):
            raise TypeError(f"{source}: token ids must be integers, got {reprlib.repr(token_id)} at index {pos}")
        if token_id < 0 or (vocab_size is not None and token_id >= vocab_size):
            bound = "at least 0" if vocab_size is None else f"between 0 and {vocab_size - 1}"
            raise ValueError(f"{source}: token ids must be {bound}, got {reprlib.repr(token_id)} at index {pos}")


def read_static_list(path: str | Path, vocab_size: int) -> Tensor:
    """int64 [N], most frequent first, from one of
        .safetensors  tensor "token_ids"
        .json         a list of integers
        .txt          one id per line
        .pt           a tensor or a list of integers (FR-Spec, token maps of SGLang), or counts: a dictionary from ids
                      to how often they occurred (token_freq.pt of speculators), or a tensor of one count per id. Ids
                      that never occurred are left out then; ties to the smaller id. No code in it is run

    An id that comes again is dropped where it does, and how many were is logged: files of FR-Spec hold some twice. A
    tensor of `vocab_size` integers is a list if it holds every id once, else counts.

    Raises FileNotFoundError for a missing file; ValueError for one that is no list in its format, is empty or leaves
    the vocabulary of `vocab_size` ids; TypeError for ids that are no integers. Each names the path.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"static list not found: {path}")
    if not path.is_file():  # opening a pipe would wait for its writer
        raise ValueError(f"static list must be a regular file, got {path}")
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise ValueError(f"static list must end in {', '.join(_READERS)}, got {path}")
    try:
        ids = reader(path)
    except _UNREADABLE as error:
        raise ValueError(f"{path}: cannot be read as a {path.suffix} list of token ids: {error}") from error
    if path.suffix == ".pt":
        ids = _ids_by_count(ids, vocab_size, path)
    if isinstance(ids, Tensor):
        if ids.dim() != 1:
            raise ValueError(f"{path}: token ids must be 1-D, got shape {tuple(ids.shape)}")
        if ids.shape[0] > MAX_IDS:
            raise ValueError(f"{path}: must hold at most {MAX_IDS} token ids, got {ids.shape[0]}")
        ids = ids.tolist()
    if not isinstance(ids, list):
        raise TypeError(f"{path}: must hold a list of token ids, got {type(ids).__name__}")
    if not ids:
        raise ValueError(f"{path}: must hold at least one token id, got none")
    _check_range(ids, vocab_size, str(path))
    distinct = list(dict.fromkeys(ids))
    if len(distinct) < len(ids):
        log.info("%s: dropped %d repetitions among %d token ids", path, len(ids) - len(distinct), len(ids))
    return torch.tensor(distinct)


def write_static_list(path: str | Path, ids: Tensor) -> None:
    """Write `ids` [N], most frequent first, as a file that `read_static_list` reads: .safetensors, or .pt, a tensor as
    SGLang reads it (`--speculative-token-map`).

    Raises ValueError for another suffix or ids that are empty, not 1-D, negative or repeated, TypeError for ids that
    are no integers; nothing is written then, nor if writing fails.
    """
    path = Path(path)
    check_list_name(path)
    if ids.dim() != 1 or ids.shape[0] == 0:
        raise ValueError(f"ids must be 1-D and not empty, got shape {tuple(ids.shape)}")
    check_token_ids(ids.tolist(), None, "ids")
    ids = ids.detach().to("cpu", torch.int64).clone()
    with new_file(path) as partial:
        if path.suffix == ".pt":
            torch.save(ids, partial)
        else:
            save_file({TENSOR_NAME: ids}, partial)


def check_list_name(path: Path) -> None:
    """ValueError for a name that `write_static_list` does not write to."""
    if path.suffix not in WRITTEN:
        raise ValueError(f"path must end in {' or '.join(WRITTEN)}, got {path}")


def _ids_by_count(content: object, vocab_size: int, path: Path) -> object:
    """The ids of counts, most frequent first; anything else as it is."""
    if isinstance(content, dict):
        ids, counts = list(content), list(content.values())
        _check_range(ids, vocab_size, str(path))
    elif isinstance(content, Tensor) and _is_counts(content, vocab_size):
        counts = content.tolist()
        ids = list(range(vocab_size))
    else:
        return content
    for token_id, count in zip(ids, counts, strict=True):
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValueError(
                f"{path}: counts must be integers of at least 0, got {reprlib.repr(count)} for id {token_id}"
            )
    seen = [(-count, token_id) for token_id, count in zip(ids, counts, strict=True) if count]
    return [token_id for _, token_id in sorted(seen)]


def _is_counts(tensor: Tensor, vocab_size: int) -> bool:
    """One integer per id that are not the ids themselves in some order."""
    if tensor.shape != (vocab_size,) or tensor.is_floating_point() or tensor.dtype == torch.bool:
        return False
    return not torch.equal(tensor.long().sort().values, torch.arange(vocab_size))


def _read_safetensors(path: Path) -> Tensor:
    with safetensors.safe_open(path, framework="pt") as file:
        names = list(file.keys())
        if TENSOR_NAME not in names:
            raise ValueError(f"it must hold a tensor {TENSOR_NAME!r}, got {shown_names(names)}")
        return file.get_tensor(TENSOR_NAME)


def _read_text(path: Path) -> list[object]:
    lines = read_bytes(path, MAX_LIST_BYTES).decode("utf-8").splitlines()
    return [_integer_or_text(line.strip()) for line in lines if line.strip()]


def _integer_or_text(text: str) -> object:
    """A line that is no integer stays text, so that the check names it together with its index."""
    return int(text) if text.isascii() and text.removeprefix("-").isdecimal() else text


def _read_json(path: Path) -> object:
    return read_json_file(path, MAX_LIST_BYTES)


def _read_torch(path: Path) -> object:
    return load_torch_archive(path)


_READERS: dict[str, Callable[[Path], object]] = {
    ".safetensors": _read_safetensors,
    ".json": _read_json,
    ".txt": _read_text,
    ".pt": _read_torch,
}
# What the four readers raise for a file that is damaged, cannot be opened or claims what no tensor can be.
_UNREADABLE = (OSError, ValueError, RuntimeError, TypeError, ArithmeticError, MemoryError, safetensors.SafetensorError)
