"""Counts on the disk: what is written is read back, and only where it belongs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nanospec.calibration.token_counts import load_counts, no_counts, save_counts, skip_counted

SETTINGS = {"field": "response", "temperature": 0.5, "tokenizer": None}


def test_ids_are_counted_over_texts() -> None:
    counted = no_counts(5).add(["x", "y"], [[1, 1, 4], []]).add(["z"], [[4]])
    assert counted.counts.tolist() == [0, 2, 0, 0, 2]
    assert (counted.counts.dtype, counted.num_texts) == (torch.int64, 3)


def test_the_digest_is_of_the_texts_and_not_of_the_batches() -> None:
    whole = no_counts(5).add(["a", "bc"], [[], []])
    assert whole.digest == no_counts(5).add(["a"], [[]]).add(["bc"], [[]]).digest
    assert whole.digest != no_counts(5).add(["ab", "c"], [[], []]).digest


@pytest.mark.parametrize("token_id", [-1, 5])
def test_an_id_outside_the_vocabulary_is_named(token_id: int) -> None:
    with pytest.raises(ValueError, match=f"ids must be between 0 and 4, got {token_id}"):
        no_counts(5).add(["x"], [[1, token_id]])


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    counted = no_counts(5).add(["x", "y"], [[1, 1, 4], []])
    save_counts(tmp_path / "state", counted, SETTINGS)
    loaded = load_counts(tmp_path / "state", 5, SETTINGS)
    assert torch.equal(loaded.counts, counted.counts)
    assert loaded[1:] == counted[1:]


def test_without_a_state_nothing_is_counted(tmp_path: Path) -> None:
    loaded = load_counts(tmp_path / "state", 5, SETTINGS)
    assert (loaded.counts.tolist(), loaded.num_texts) == ([0] * 5, 0)


def test_what_is_counted_is_skipped() -> None:
    texts = iter(["x", "y", "z"])
    skip_counted(texts, no_counts(5).add(["x", "y"], [[], []]), "state")
    assert list(texts) == ["z"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [(["x"], "state must be of this corpus: it counts 2 texts, here are 1"), (["x", "z"], "texts are others")],
)
def test_another_corpus_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        skip_counted(iter(texts), no_counts(5).add(["x", "y"], [[], []]), "state")


def test_other_settings_and_sizes_are_refused_by_name(tmp_path: Path) -> None:
    save_counts(tmp_path / "state", no_counts(5).add(["x"], [[1]]), SETTINGS)
    with pytest.raises(ValueError, match="state must be of a count with field 'text', got 'response'"):
        load_counts(tmp_path / "state", 5, {**SETTINGS, "field": "text"})
    with pytest.raises(ValueError, match=r"state must hold counts of 6 ids, got shape \(5,\)"):
        load_counts(tmp_path / "state", 6, SETTINGS)


def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"no state")
    with pytest.raises(ValueError, match="state must be the state of a count"):
        load_counts(tmp_path / "state", 5, SETTINGS)
    save_file({"counts": torch.zeros(5, dtype=torch.int64)}, tmp_path / "state")
    with pytest.raises(ValueError, match="state must be the state of a count"):
        load_counts(tmp_path / "state", 5, SETTINGS)


@pytest.mark.parametrize(
    ("settings", "counts", "num_texts"),
    [
        ("[1]", torch.zeros(5, dtype=torch.int64), "1"),
        ("null", torch.zeros(5, dtype=torch.int64), "1"),
        ("{", torch.zeros(5, dtype=torch.int64), "1"),
        ("{}", torch.zeros(5), "1"),
        ("{}", torch.zeros(5, dtype=torch.int32), "1"),
        ("{}", torch.full((5,), -1), "1"),
        ("{}", torch.zeros(5, dtype=torch.int64), "-1"),
        ("{}", torch.zeros(5, dtype=torch.int64), "many"),
    ],
)
def test_a_state_of_something_else_is_refused(
    tmp_path: Path, settings: str, counts: torch.Tensor, num_texts: str
) -> None:
    about = {"settings": settings, "num_texts": num_texts, "digest": ""}
    save_file({"counts": counts}, tmp_path / "state", metadata=about)
    with pytest.raises(ValueError, match="state must be the state of a count, .*: delete it to begin anew"):
        load_counts(tmp_path / "state", 5, {})
