"""Router files: what is written is read back, and a file that is not right is refused with its reason."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nanospec.vocab.router_file import FORMAT, LEVEL_ROWS, read_report, read_router, write_router
from nanospec.vocab_selector import build_vocab_selector
from tests.tiny_router import tiny_router

WEIGHT = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "router.safetensors"
    write_router(path, tiny_router(WEIGHT, 1), (9, 6), {"recall": {"rows": [4]}})
    return path


def test_a_router_is_read_back_as_it_was(path) -> None:
    router, num_rows = read_router(path)
    expected = tiny_router(WEIGHT, 1).state_dict()
    assert num_rows == (9, 6)
    assert router.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in router.state_dict().items())
    assert read_report(path) == {"recall": {"rows": [4]}}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_router_that_looks_ahead_is_read_back_whole_or_refused(path) -> None:
    expected = tiny_router(WEIGHT, 1, looks_ahead=True)
    write_router(path, expected, (9, 6), {})
    router, _ = read_router(path)
    rows, states = WEIGHT[:3], WEIGHT[3:6]
    assert torch.equal(router.score_ahead(rows, states), expected.score_ahead(rows, states))
    for change, message in (
        (lambda tensors: tensors.pop("ahead.2.bias"), "a router must hold"),
        (put("ahead.0.weight", lambda x: x[:, :4].contiguous()), r"ahead.0.weight must be \(5, 8\), got \(5, 4\)"),
    ):
        write_router(path, expected, (9, 6), {})
        with pytest.raises(ValueError, match=message):
            read_router(rewritten(path, change))


def rewritten(path, change, metadata=None):
    """The file with tensors that `change` changed."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {**FORMAT, "report": "{}"} if metadata is None else metadata)
    return path


def put(name, make):
    return lambda tensors: tensors.update({name: make(tensors[name].clone())})


def nan(tensor):
    tensor.view(-1)[0] = float("nan")
    return tensor


def repeated(ids):
    ids[0] = ids[1]
    return ids


def moved(sizes):
    """Of the same sum, one below 1."""
    return torch.cat((sizes[:-1] * 0, sizes.sum()[None]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("score.weight", nan), "score.weight must be finite, got NaN or infinity"),
        (put("hidden.bias", lambda x: x[1:]), r"hidden.bias must be \(5,\), got \(4,\)"),
        (put("score.weight", lambda x: x[:, 1:].contiguous()), r"score.weight must be \(7, 5\), got \(7, 4\)"),
        (put("head_sample", lambda x: x[:, 1:].contiguous()), r"head_sample must be \(16, 4\), got \(16, 3\)"),
        (put("hidden.weight", lambda x: x.double()), "hidden.weight must be torch.float32, got torch.float64"),
        (put("hidden.weight", lambda x: x[:, 0].contiguous()), r"hidden.weight must be a matrix, got shape \(5,\)"),
        (put("sizes", lambda x: x + 1), "sizes must be positive and add up to 20, got 7 of 27"),
        (put("sizes", moved), "sizes must be positive and add up to 20, got 7 of 20"),
        (put("sizes", lambda x: x[:0]), r"sizes must be 1-D and not empty, got shape \(0,\)"),
        (put("token_ids", repeated), "token_ids must hold every row of 20 once"),
        (put("token_ids", lambda x: x - 1), "token_ids must hold every row of 20 once"),
        (put(LEVEL_ROWS, lambda x: x * 0), r"num_rows must be in \[1, 20\], got \(0, 0\)"),
        (put(LEVEL_ROWS, lambda x: x + 15), r"num_rows must be in \[1, 20\], got \(24, 21\)"),
        (lambda tensors: tensors.pop("sizes"), "a router must hold"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "a router must hold"),
    ],
)
def test_tensors_that_do_not_fit_are_named(path, change, message) -> None:
    with pytest.raises(ValueError, match=f"router.safetensors: {message}"):
        read_router(rewritten(path, change))


def test_a_file_of_something_else_is_refused(path) -> None:
    with pytest.raises(ValueError, match="cannot be read as a router: its metadata must say"):
        read_router(rewritten(path, lambda tensors: None, {"format": "pt"}))


@pytest.mark.parametrize("length", [0, 7, 200, -1])
def test_a_truncated_file_is_refused(path, length) -> None:
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="router.safetensors: cannot be read as a router"):
        read_router(path)


def test_a_router_of_another_model_is_refused(path) -> None:
    with pytest.raises(ValueError, match=r"router must be made for a head of \(21, 4\), got one for \(20, 4\)"):
        build_vocab_selector(f"routed:{path}", torch.randn(21, 4))
    with pytest.raises(ValueError, match="got one for another of the same shape"):
        build_vocab_selector(f"routed:{path}", WEIGHT + 0.1)
    build_vocab_selector(f"routed:{path}", WEIGHT.bfloat16().double())


def test_a_missing_file_and_a_bad_report_are_named(path, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="router file not found"):
        read_router(tmp_path / "none.safetensors")
    rewritten(path, lambda tensors: None, {**FORMAT, "report": "{"})
    with pytest.raises(ValueError, match="metadata 'report' must be JSON"):
        read_report(path)


def test_a_failed_write_leaves_what_was_there(path, tmp_path) -> None:
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_router(path, tiny_router(WEIGHT, 2), (5,), {"report": object()})
    assert path.read_bytes() == before
    for bad, error in ((tmp_path / "x.pt", ValueError), (tmp_path / "none" / "x.safetensors", FileNotFoundError)):
        with pytest.raises(error, match="router file must"):
            write_router(bad, tiny_router(WEIGHT, 2), (5,), {})
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["report"])
