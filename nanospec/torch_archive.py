"""Reads what torch.save wrote, from a file that anyone may have written: no code, no more memory than the file holds.

torch.load with weights_only=True runs no code of the file, but it inflates compressed records, makes whatever size of
buffer a pickle asks for, and gives tensors whose strides repeat one number without end. Hence the archive's directory
and the names in its pickle are looked at first, and the tensors' sizes afterwards.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

MAX_PICKLE_BYTES = 2**23  # of names and shapes; a list of all ids of a vocabulary takes 2^20
MAX_SHARING = 16  # tensors over one storage, such as an embedding and a head
_GLOBALS = (
    "collections OrderedDict", "collections Counter", "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3", "torch._utils _rebuild_tensor", "torch._utils _rebuild_parameter",
)  # fmt: skip
_END = struct.Struct("<4s4H2LH")  # the last record of a zip file, without a comment
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
# What reading a damaged archive raises; a damaged pickle can fail in most of its instructions.
_UNREADABLE = (
    zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, OSError, TypeError,
    AttributeError, AssertionError, ArithmeticError, MemoryError, struct.error,
)  # fmt: skip


def load_torch_archive(path: Path, specs_only: bool = False) -> object:
    """What a file of torch.save holds, with tensors on the CPU, or on the meta device if specs_only.

    Raises ValueError that says why for a file that is damaged, that is no plain zip archive (torch.save writes one
    since 1.6), whose pickle asks for more than dense tensors, numbers, text, lists and dictionaries, or whose tensors
    have more numbers than the file.
    """
    try:
        _check_pickle(_read_pickle(path))
        content = torch.load(path, map_location="meta" if specs_only else "cpu", weights_only=True)
        tensors = [value for value in _values(content) if isinstance(value, Tensor)]
        _check_tensors(tensors, path.stat().st_size, specs_only)
    except _UNREADABLE as error:
        raise ValueError((str(error) or type(error).__name__).splitlines()[0][:400]) from None
    return content


def _read_pickle(path: Path) -> bytes:
    """data.pkl of an archive whose records are stored as they are, lie in one folder and fit into the file."""
    _check_end(path)
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        for record in records:
            if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
                raise ValueError(f"a record that is compressed: {record.filename[:60]!r}")
        if sum(record.file_size for record in records) > size:
            raise ValueError(f"records of more bytes than the file has: {size}")
        names = {record.filename.lower() for record in records}  # PyTorch's reader does not tell the cases apart
        folders = {name.partition("/")[0] for name in names}
        if len(names) < len(records) or len(folders) != 1:
            raise ValueError("records that share a name, or lie in several folders")
        pickled = next((record for record in records if record.filename.partition("/")[2] == "data.pkl"), None)
        if pickled is None or pickled.file_size > MAX_PICKLE_BYTES:
            raise ValueError(f"no data.pkl of at most {MAX_PICKLE_BYTES} bytes")
        return archive.read(pickled)


def _check_end(path: Path) -> None:
    """The directory of the archive lies where every reader of zip files finds the same one: right before its end."""
    tail = _LOCATOR64.size + _END64.size
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - _END.size - tail, 0))
        ending = file.read()
    if len(ending) < _END.size or ending[-_END.size :][:4] != b"PK\x05\x06" or ending[-2:] != b"\0\0":
        raise ValueError("no zip archive, which torch.save writes since 1.6")
    directory_size, offset = _END.unpack(ending[-_END.size :])[5:7]
    end = size - _END.size
    if len(ending) == tail + _END.size and ending[_END64.size :][:4] == b"PK\x06\x07":
        signature, *_, directory_size, offset = _END64.unpack(ending[: _END64.size])
        end -= tail
        if signature != b"PK\x06\x06" or _LOCATOR64.unpack(ending[_END64.size : tail])[2] != end:
            raise ValueError("an archive with two ends")
    if directory_size + offset != end:
        raise ValueError("an archive whose directory is not before its end")


def _check_pickle(content: bytes) -> None:
    """Names of what the pickle calls or refers to; the calls that make plain tensors are the only ones."""
    for operation, argument, _ in pickletools.genops(content):
        if operation.name not in ("GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            continue
        module, _, name = str(argument).partition(" ")
        is_dtype_or_storage = module in ("torch", "torch.storage") and (
            name.endswith("Storage") or isinstance(vars(torch).get(name), torch.dtype)
        )
        if operation.name != "GLOBAL" or not (is_dtype_or_storage or argument in _GLOBALS):
            raise ValueError(f"a pickle with more than plain tensors in it: {str(argument)[:60]!r}")


def _values(content: object) -> Iterable[object]:
    return content.values() if isinstance(content, dict) else (content,)


def _check_tensors(tensors: Iterable[Tensor], file_size: int, specs_only: bool) -> None:
    """Dense tensors on the device asked for; none repeats its numbers by strides of 0, and all together have no more
    bytes than `MAX_SHARING` times the file."""
    total = 0
    for tensor in tensors:
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta != specs_only:
            raise ValueError("a tensor that is not dense")
        num_bytes = tensor.numel() * tensor.element_size()
        total += num_bytes
        if num_bytes > tensor.untyped_storage().nbytes() or total > MAX_SHARING * file_size:
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} in a file of {file_size} bytes")
