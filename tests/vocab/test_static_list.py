"""Lists of token ids on disk: every format, every way to be wrong."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nanospec.vocab.static_list import read_static_list, write_static_list

IDS = [5, 0, 9]
VOCAB_SIZE = 10
SUFFIXES = (".safetensors", ".json", ".txt", ".pt")


def write_list(path: Path, ids: list) -> Path:
    if path.suffix == ".safetensors":
        save_file({"token_ids": torch.tensor(ids)}, path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(ids))
    elif path.suffix == ".txt":
        path.write_text("".join(f"{token_id}\n" for token_id in ids))
    else:
        torch.save(ids, path)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_keeps_the_order(tmp_path: Path, suffix: str) -> None:
    ids = read_static_list(write_list(tmp_path / f"list{suffix}", IDS), VOCAB_SIZE)
    assert ids.dtype == torch.int64
    assert ids.tolist() == IDS


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_repeated_ids_are_dropped_in_order_and_counted(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_list(tmp_path / f"list{suffix}", [5, 7, 0, 5, 0, 2])
    with caplog.at_level(logging.INFO, logger="nanospec"):
        assert read_static_list(path, VOCAB_SIZE).tolist() == [5, 7, 0, 2]
    assert caplog.messages == [f"{path}: dropped 2 repetitions among 6 token ids"]


def test_what_equals_an_id_is_no_repetition_of_it(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="must be integers, got 1.0 at index 1"):
        read_static_list(write_list(tmp_path / "list.json", [1, 1.0]), VOCAB_SIZE)


def test_a_saved_tensor_is_a_list(tmp_path: Path) -> None:
    torch.save(torch.tensor(IDS, dtype=torch.int32), tmp_path / "list.pt")
    assert read_static_list(str(tmp_path / "list.pt"), VOCAB_SIZE).tolist() == IDS


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([1, 10], ValueError, "between 0 and 9, got 10 at index 1"),
        ([1, 2, -1], ValueError, "between 0 and 9, got -1 at index 2"),
        ([1.5, 2.0], TypeError, "must be integers, got '?1.5'? at index 0"),
        ([True, False], TypeError, "must be integers, got '?True'? at index 0"),
        ([], ValueError, "at least one token id"),
    ],
)
def test_a_bad_list_is_refused_with_path_and_first_offender(
    tmp_path: Path, suffix: str, ids: list, error: type[Exception], message: str
) -> None:
    path = write_list(tmp_path / f"list{suffix}", ids)
    with pytest.raises(error, match=message) as raised:
        read_static_list(path, VOCAB_SIZE)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00 no list", None], ids=["empty", "damaged", "directory"])
def test_an_unreadable_file_is_refused_by_name(tmp_path: Path, suffix: str, content: bytes | None) -> None:
    path = tmp_path / f"list{suffix}"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="list") as raised:
        read_static_list(path, VOCAB_SIZE)
    assert str(path) in str(raised.value)


def test_a_missing_file_and_an_unknown_format_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="static list not found: .*none.json"):
        read_static_list(tmp_path / "none.json", VOCAB_SIZE)
    (tmp_path / "list.csv").write_text("1")
    with pytest.raises(ValueError, match=r"must end in .safetensors, .json, .txt, .pt, got .*list.csv"):
        read_static_list(tmp_path / "list.csv", VOCAB_SIZE)


def test_what_is_no_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text('{"token_ids": [1]}')
    with pytest.raises(TypeError, match=r"list.json: must hold a list of token ids, got dict"):
        read_static_list(tmp_path / "list.json", VOCAB_SIZE)
    save_file({"ids": torch.tensor(IDS)}, tmp_path / "list.safetensors")
    with pytest.raises(ValueError, match=r"must hold a tensor 'token_ids', got \['ids'\]"):
        read_static_list(tmp_path / "list.safetensors", VOCAB_SIZE)
    torch.save(torch.tensor([IDS]), tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list.pt: token ids must be 1-D, got shape \(1, 3\)"):
        read_static_list(tmp_path / "list.pt", VOCAB_SIZE)


def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path) -> None:
    torch.save(Path("x"), tmp_path / "list.pt")
    with pytest.raises(ValueError, match="list.pt: cannot be read"):
        read_static_list(tmp_path / "list.pt", VOCAB_SIZE)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "list.safetensors")
    with pytest.raises(ValueError, match="static list must be a regular file, got .*list.safetensors"):
        read_static_list(tmp_path / "list.safetensors", VOCAB_SIZE)


def test_lists_within_lists_are_refused_in_a_few_words(tmp_path: Path) -> None:
    nested: list = [1]
    for _ in range(40):  # written out, 2^40 numbers
        nested = [nested, nested]
    torch.save(nested, tmp_path / "list.pt")
    with pytest.raises(TypeError, match="token ids must be integers, got") as raised:
        read_static_list(tmp_path / "list.pt", VOCAB_SIZE)
    assert len(str(raised.value)) < 1000


def test_a_tensor_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(1, dtype=torch.int64).expand(10**10), tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list.pt: cannot be read .* a tensor of shape \(10000000000,\)"):
        read_static_list(tmp_path / "list.pt", VOCAB_SIZE)


@pytest.mark.parametrize("line", ["٣", "1_0", "--1", "+1"])
def test_a_line_is_an_id_in_plain_digits(tmp_path: Path, line: str) -> None:
    (tmp_path / "list.txt").write_text(f"{line}\n")
    with pytest.raises(TypeError, match="token ids must be integers, got"):
        read_static_list(tmp_path / "list.txt", VOCAB_SIZE)


def test_a_damaged_pickle_is_a_value_error(tmp_path: Path) -> None:
    torch.save(IDS, tmp_path / "list.pt")
    whole = (tmp_path / "list.pt").read_bytes()
    (tmp_path / "list.pt").write_bytes(whole.replace(b"]q\x00", b"jq\x00"))
    with pytest.raises(ValueError, match="list.pt: cannot be read"):
        read_static_list(tmp_path / "list.pt", VOCAB_SIZE)


def test_an_integer_beyond_64_bits_is_out_of_range(tmp_path: Path) -> None:
    path = write_list(tmp_path / "list.json", [1, 2**70])
    with pytest.raises(ValueError, match=f"got {2**70} at index 1"):
        read_static_list(path, VOCAB_SIZE)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"list{suffix}"
    write_static_list(path, torch.tensor(IDS, dtype=torch.int32))
    assert read_static_list(path, VOCAB_SIZE).tolist() == IDS
    assert list(tmp_path.iterdir()) == [path]


def test_a_token_map_is_a_tensor_of_64_bit_integers_alone(tmp_path: Path) -> None:
    ids = torch.tensor([1, *IDS])[1:]  # a part of a larger tensor, which is not to be saved
    write_static_list(tmp_path / "map.pt", ids)
    saved = torch.load(tmp_path / "map.pt", weights_only=True)
    assert (saved.dtype, saved.tolist()) == (torch.int64, IDS)
    assert saved.untyped_storage().nbytes() == saved.nbytes


COUNTS = [3, 0, 7, 3, 0, 0, 0, 0, 0, 1]  # of VOCAB_SIZE ids
BY_COUNT = [2, 0, 3, 9]


@pytest.mark.parametrize(
    "content",
    [
        {9: 1, 3: 3, 2: 7, 0: 3, 5: 0},
        torch.tensor(COUNTS),
        torch.tensor(COUNTS, dtype=torch.int32),
    ],
    ids=["token_freq", "tensor", "int32"],
)
def test_counts_give_the_ids_that_occurred_most_frequent_first(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "token_freq.pt")
    assert read_static_list(tmp_path / "token_freq.pt", VOCAB_SIZE).tolist() == BY_COUNT


def test_a_tensor_of_all_ids_in_some_order_is_a_list(tmp_path: Path) -> None:
    ids = [*range(1, VOCAB_SIZE), 0]
    torch.save(torch.tensor(ids), tmp_path / "map.pt")
    assert read_static_list(tmp_path / "map.pt", VOCAB_SIZE).tolist() == ids


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({10: 1}, ValueError, "token ids must be between 0 and 9, got 10 at index 0"),
        ({"d2t": 1}, TypeError, "token ids must be integers, got 'd2t' at index 0"),
        ({1: 2.5}, ValueError, "counts must be integers of at least 0, got 2.5 for id 1"),
        ({1: -2}, ValueError, "counts must be integers of at least 0, got -2 for id 1"),
        ({1: 0}, ValueError, "must hold at least one token id"),
        (torch.tensor(COUNTS) - 1, ValueError, "counts must be integers of at least 0, got -1 for id 1"),
    ],
)
def test_bad_counts_are_refused(tmp_path: Path, content: object, error: type[Exception], message: str) -> None:
    torch.save(content, tmp_path / "token_freq.pt")
    with pytest.raises(error, match=f"token_freq.pt.*{message}"):
        read_static_list(tmp_path / "token_freq.pt", VOCAB_SIZE)


def test_a_list_of_fr_spec_keeps_its_last_id_behind_a_repetition(tmp_path: Path) -> None:
    torch.save([5, 0, 9, 1, 1, 2], tmp_path / "freq_4.pt")  # begin twice, end of text last
    assert read_static_list(tmp_path / "freq_4.pt", VOCAB_SIZE).tolist() == [5, 0, 9, 1, 2]


@pytest.mark.parametrize(
    ("name", "ids", "error"),
    [
        ("list.json", torch.tensor(IDS), ValueError),
        ("list.safetensors", torch.tensor([1, 1]), ValueError),
        ("list.safetensors", torch.tensor([-1]), ValueError),
        ("list.safetensors", torch.tensor([[1]]), ValueError),
        ("list.safetensors", torch.tensor([1.0]), TypeError),
    ],
)
def test_a_bad_list_is_not_written(tmp_path: Path, name: str, ids: torch.Tensor, error: type[Exception]) -> None:
    with pytest.raises(error):
        write_static_list(tmp_path / name, ids)
    assert not list(tmp_path.iterdir())
