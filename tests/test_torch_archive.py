"""Files of torch.save: the plain ones are read, and each way to make one larger or more than it looks is refused."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanospec.torch_archive import MAX_PICKLE_BYTES, MAX_SHARING, load_torch_archive

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([True, False]), "c": torch.ones(3).bfloat16()}


def archive(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def rewritten(content: bytes, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The archive with other records."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return file.getvalue()


def with_pickle(content: object) -> bytes:
    pickled = content if isinstance(content, bytes) else pickle.dumps(content, protocol=2)
    return rewritten(archive(TENSORS), lambda name, old: pickled if name.endswith("data.pkl") else old)


class Call:
    """Pickled, it is a call."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def test_plain_content_is_what_torch_load_reads(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(archive(TENSORS))
    found = load_torch_archive(path)
    assert isinstance(found, dict)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    specs = load_torch_archive(path, specs_only=True)
    assert isinstance(specs, dict)
    assert all(specs[name].is_meta and specs[name].shape == tensor.shape for name, tensor in TENSORS.items())


@pytest.mark.parametrize(
    "content", [[3, 1, 2], OrderedDict(nn.Linear(2, 3).state_dict()), dict(nn.Linear(2, 3).named_parameters())]
)
def test_lists_state_dicts_and_parameters_are_plain(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "a.pt"
    torch.save(content, path)
    found = load_torch_archive(path)
    assert type(found) is type(content)
    assert list(found) == list(content)


def test_tied_and_transposed_tensors_are_plain(tmp_path: Path) -> None:
    weight = torch.arange(6.0).view(2, 3)
    torch.save({"a": weight, "b": weight, "c": weight.T}, tmp_path / "a.pt")
    found = load_torch_archive(tmp_path / "a.pt")
    assert isinstance(found, dict)
    assert torch.equal(found["c"], weight.T)


@pytest.mark.parametrize("specs_only", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (rewritten(archive(TENSORS), lambda name, old: old, zipfile.ZIP_DEFLATED), "a record that is compressed"),
        (archive({"a": torch.zeros(1).expand(10**9)}), r"a tensor of shape \(1000000000,\) in a file of"),
        (archive({"a": torch.eye(2).to_sparse()}), "more than plain tensors in it: 'torch._utils _rebuild_sparse"),
        (archive({"a": torch.zeros(2, device="meta")}), "more than plain tensors in it: 'torch._utils _rebuild_meta"),
        (with_pickle(Call(bytearray, 10**9)), "more than plain tensors in it: '.* bytearray'"),
        (with_pickle(Call(Path.touch, Path("ran"))), "more than plain tensors in it"),
        (with_pickle(pickle.dumps(OrderedDict(), protocol=4)), "more than plain tensors in it"),
        (with_pickle(b"\x80\x02" + b"0" * MAX_PICKLE_BYTES), f"no data.pkl of at most {MAX_PICKLE_BYTES} bytes"),
        (archive(TENSORS) + b"PK\x05\x06", "no zip archive"),
        (b"\0" + archive(TENSORS), "an archive with two ends|directory is not before its end"),
        (b"", "no zip archive"),
        (pickle.dumps([1]), "no zip archive"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(value)[:30],
)
def test_what_is_more_than_it_looks_is_refused(tmp_path: Path, content: bytes, message: str, specs_only: bool) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_torch_archive(path, specs_only)
    assert not Path("ran").exists()


def test_a_format_that_pickles_buffers_is_refused(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="no zip archive, which torch.save writes since 1.6"):
        load_torch_archive(tmp_path / "a.pt")


def test_a_tensor_that_claims_more_than_its_record_is_refused(tmp_path: Path) -> None:
    content = archive({"a": torch.zeros(1000)})
    claim = b"M" + struct.pack("<H", 1000), b"J" + struct.pack("<i", 10**8)
    (tmp_path / "a.pt").write_bytes(rewritten(content, lambda name, old: old.replace(*claim)))
    for specs_only in (False, True):
        with pytest.raises(ValueError, match="does not match expected size|in a file of"):
            load_torch_archive(tmp_path / "a.pt", specs_only)


def test_one_buffer_under_many_names_is_refused(tmp_path: Path) -> None:
    weight = torch.zeros(10**5)
    torch.save({str(number): weight for number in range(MAX_SHARING + 1)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a tensor of shape \(100000,\) in a file of"):
        load_torch_archive(tmp_path / "a.pt", specs_only=True)


@pytest.mark.parametrize("other", ["archive/DATA.PKL", "other/data/0"])
def test_records_that_readers_may_take_for_each_other_are_refused(tmp_path: Path, other: str) -> None:
    content = io.BytesIO(rewritten(archive(TENSORS), lambda name, old: old))
    with zipfile.ZipFile(content, "a") as file:
        file.writestr(other, b"x")
    (tmp_path / "a.pt").write_bytes(content.getvalue())
    with pytest.raises(ValueError, match="records that share a name, or lie in several folders"):
        load_torch_archive(tmp_path / "a.pt")


def test_a_second_directory_that_another_reader_would_find_is_refused(tmp_path: Path) -> None:
    content = bytearray(archive({"a": Tensor([1.0])}))
    end = len(content) - 22
    content[end + 16 : end + 20] = struct.pack("<L", 0)  # where the last record says that the directory is
    locator = end - 20
    content[locator + 8 : locator + 16] = struct.pack("<Q", 0)  # and where the record for large files says it
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match="an archive with two ends"):
        load_torch_archive(tmp_path / "a.pt")
