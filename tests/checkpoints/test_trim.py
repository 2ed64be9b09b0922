"""Trimmed drafts on disk: which rows and maps they hold, under which names, and what is refused before anything is
written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from nanospec.checkpoints import load_drafter
from nanospec.checkpoints.trim import choose_ids, read_draft_head, trim_draft
from nanospec.target import Target
from tests.checkpoints import eagle3_files, test_eagle, test_medusa
from tests.checkpoints.eagle3_files import CONFIG, HIDDEN, SAYABLE, VOCAB, full_vocabulary, official, speculators

IDS = torch.tensor([29, 3, 35, 10])
ASCENDING = [3, 10, 29, 35]


def eagle_draft(directory: Path) -> Path:
    return test_eagle.write_draft(directory, test_eagle.published_tensors())


@pytest.mark.parametrize(
    ("tensors", "config", "file"),
    [
        (official(), CONFIG, "pytorch_model.bin"),
        (full_vocabulary(with_maps=False), CONFIG, "model.safetensors"),
        (full_vocabulary(with_maps=True), CONFIG, "model.safetensors"),
        (speculators(), eagle3_files.speculators_config(), "model.safetensors"),
        ({f"model.{name}": tensor for name, tensor in official().items()}, CONFIG, "model.safetensors"),
    ],
    ids=["official", "full", "full with maps", "speculators", "prefixed"],
)
def test_eagle_3_keeps_its_layout_and_holds_the_chosen_rows(
    tmp_path: Path, target: Target, tensors: dict[str, Tensor], config: dict[str, Any], file: str
) -> None:
    head = read_draft_head(eagle3_files.write_draft(tmp_path / "a", tensors, config, file))
    report = trim_draft(head, IDS, tmp_path / "b")
    saved = load_file(tmp_path / "b" / "model.safetensors")
    prefix = "model." if "model.norm.weight" in tensors else ""
    names = [f"{prefix}{name}" if f"{prefix}{name}" in tensors else name for name in ("lm_head.weight", "d2t", "t2d")]
    assert saved.keys() == tensors.keys() | set(names)
    rows, d2t, t2d = (saved[name] for name in names)
    ids = SAYABLE if tensors[names[0]].shape[0] < VOCAB else torch.arange(VOCAB)
    assert torch.equal(rows, tensors[names[0]][torch.isin(ids, IDS)])
    assert (d2t.dtype, (d2t + torch.arange(4)).tolist()) == (torch.int64, ASCENDING)
    assert (t2d.dtype, t2d.shape, t2d.nonzero()[:, 0].tolist()) == (torch.bool, (VOCAB,), ASCENDING)
    assert all(torch.equal(saved[name], tensors[name]) for name in tensors.keys() - set(names))
    assert json.loads((tmp_path / "b" / "config.json").read_text()) == {**config, "draft_vocab_size": 4}
    drafter = load_drafter(tmp_path / "b", target)
    assert drafter.target_ids.tolist() == ASCENDING  # type: ignore[attr-defined]
    assert (report.rows, report.trimmed_rows) == (ids.shape[0], 4)
    assert report.trimmed_head_bytes == rows.nbytes == 4 * HIDDEN * 4
    assert report.params - report.trimmed_params == (report.rows - 4) * HIDDEN


def test_eagle_1_gets_rows_of_the_target_and_can_be_trimmed_again(tmp_path: Path, target: Target) -> None:
    head = read_draft_head(eagle_draft(tmp_path / "a"), target)
    trim_draft(head, IDS, tmp_path / "b")
    drafter = load_drafter(tmp_path / "b", target)
    assert torch.equal(drafter.head.weight, target.head_weight[ASCENDING])  # type: ignore[attr-defined]
    assert drafter.target_ids.tolist() == ASCENDING  # type: ignore[attr-defined]
    trim_draft(read_draft_head(tmp_path / "b"), torch.tensor([35, 3]), tmp_path / "c")
    again = load_drafter(tmp_path / "c", target)
    assert torch.equal(again.head.weight, target.head_weight[[3, 35]])  # type: ignore[attr-defined]


def test_eagle_3_without_a_head_gets_rows_of_the_target(tmp_path: Path, target: Target) -> None:
    tensors = full_vocabulary(with_maps=False)
    del tensors["lm_head.weight"]
    head = read_draft_head(eagle3_files.write_draft(tmp_path / "a", tensors), target)
    trim_draft(head, IDS, tmp_path / "b")
    rows = load_file(tmp_path / "b" / "model.safetensors")["lm_head.weight"]
    assert torch.equal(rows, target.head_weight[ASCENDING])


@pytest.mark.parametrize(
    ("listed", "num_ids", "kept", "expected"),
    [
        ([29, 3, 35, 10], None, [], [29, 3, 35, 10]),
        ([29, 3, 35, 10], 2, [], [29, 3]),
        ([29, 1, 3, 2, 35], 3, [], [29, 3, 35]),  # the draft cannot say 1 and 2
        ([29, 3, 35, 10], 3, [0], [0, 29, 3]),
        ([29, 3, 35, 10], 3, [3, 5], [3, 29, 35]),
        ([29, 29, 3], None, [], [29, 3]),
    ],
)
def test_the_first_ids_that_the_draft_can_say_are_chosen(
    tmp_path: Path, listed: list[int], num_ids: int | None, kept: list[int], expected: list[int]
) -> None:
    head = read_draft_head(eagle3_files.write_draft(tmp_path, official()))
    assert choose_ids(torch.tensor(listed), head, num_ids, kept).tolist() == expected


@pytest.mark.parametrize(("num_ids", "kept"), [(0, []), (4, []), (1, [0, 3])])
def test_a_number_of_ids_that_cannot_be_is_refused(tmp_path: Path, num_ids: int, kept: list[int]) -> None:
    head = read_draft_head(eagle3_files.write_draft(tmp_path, official()))
    with pytest.raises(ValueError, match=rf"num_ids must be between \d and \d, .* 9 rows, .* got {num_ids}"):
        choose_ids(torch.tensor([29, 3, 1, 35]), head, num_ids, kept)


def test_all_rows_are_no_trimmed_draft(tmp_path: Path) -> None:
    head = read_draft_head(eagle3_files.write_draft(tmp_path, official()))
    with pytest.raises(ValueError, match="num_ids must be between 1 and 8, as the draft has 9 rows"):
        choose_ids(SAYABLE, head)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "ids must be 1-D and not empty"),
        ([[3]], r"ids must be 1-D and not empty, got shape \(1, 1\)"),
        ([3, 3], "ids: token ids must be distinct"),
        ([3, 37], "ids: token ids must be between 0 and 36, got 37"),
        ([3, 1], "ids must be ids that the draft scores, got 1"),
    ],
)
def test_wrong_ids_are_refused_and_nothing_is_written(tmp_path: Path, ids: list, message: str) -> None:
    head = read_draft_head(eagle3_files.write_draft(tmp_path / "a", official()))
    with pytest.raises(ValueError, match=message):
        trim_draft(head, torch.tensor(ids, dtype=torch.int64), tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_does_not_load_never_appears(tmp_path: Path, target: Target) -> None:
    tensors = official()
    del tensors["norm.weight"]
    head = read_draft_head(eagle3_files.write_draft(tmp_path / "a", tensors), target)
    with pytest.raises(ValueError, match="missing tensors .'norm.weight'."):
        trim_draft(head, IDS, tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_taken_directory_is_left_alone(tmp_path: Path) -> None:
    draft = eagle3_files.write_draft(tmp_path / "a", official())
    with pytest.raises(ValueError, match="out must be a new or empty directory, got .*a, which is taken"):
        trim_draft(read_draft_head(draft), IDS, draft)
    assert (draft / "config.json").read_text() == json.dumps(CONFIG)


def test_other_drafts_are_refused_by_name(tmp_path: Path, target: Target) -> None:
    target.model.save_pretrained(tmp_path / "lm")
    with pytest.raises(NotImplementedError, match="got causal language model in .*: its format has one vocab_size"):
        read_draft_head(tmp_path / "lm", target)
    test_medusa.write(tmp_path / "medusa", {"0.0.linear.weight": torch.ones(HIDDEN, HIDDEN)})
    with pytest.raises(NotImplementedError, match="draft must be EAGLE-1/2 or EAGLE-3 to be trimmed, got Medusa"):
        read_draft_head(tmp_path / "medusa", target)


def test_a_draft_without_a_head_needs_the_target(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="target must be given for a draft without a head of its own, got none"):
        read_draft_head(eagle_draft(tmp_path / "a"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lm_head.weight": None}, r"draft must hold 'lm_head.weight' because it holds \['d2t', 't2d'\]"),
        ({"d2t": None, "t2d": None}, r"unused tensors \['lm_head.weight'\]"),
        ({"d2t": torch.tensor([0, 1, 2, 3])}, "d2t and t2d must name the same ids"),
        ({"lm_head.weight": torch.ones(4, HIDDEN + 1)}, r"'lm_head.weight' must have shape \(4, 16\)"),
        ({"lm_head.weight": torch.ones(5, HIDDEN)}, r"draft d2t must have shape \(5,\)"),
    ],
)
def test_a_damaged_trimmed_eagle_1_is_refused(
    tmp_path: Path, target: Target, changed: dict[str, Tensor | None], message: str
) -> None:
    trim_draft(read_draft_head(eagle_draft(tmp_path / "a"), target), IDS, tmp_path / "b")
    tensors = {**load_file(tmp_path / "b" / "model.safetensors"), **changed}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    test_eagle.write_draft(tmp_path / "c", kept, "model.safetensors")
    with pytest.raises(ValueError, match=message):
        load_drafter(tmp_path / "c", target)


@pytest.mark.parametrize("name", ["t2d", "embed_tokens.weight"])
def test_a_number_in_place_of_a_tensor_that_tells_the_size_is_refused(tmp_path: Path, name: str) -> None:
    tensors = {key: tensor for key, tensor in official().items() if key != "t2d"} | {name: torch.tensor(1.0)}
    config = {key: value for key, value in CONFIG.items() if key != "vocab_size"}
    with pytest.raises(ValueError, match="t2d must have shape|target must be given for a draft whose files do not say"):
        read_draft_head(eagle3_files.write_draft(tmp_path, tensors, config))


def test_tensors_that_share_memory_are_written_each_as_its_own(tmp_path: Path, target: Target) -> None:
    tensors = official()
    tensors["midlayer.hidden_norm.weight"] = tensors["midlayer.input_layernorm.weight"]
    head = read_draft_head(eagle3_files.write_draft(tmp_path / "a", tensors, CONFIG, "pytorch_model.bin"), target)
    trim_draft(head, IDS, tmp_path / "b")
    saved = load_file(tmp_path / "b" / "model.safetensors")
    for name in ("midlayer.hidden_norm.weight", "midlayer.input_layernorm.weight"):
        assert torch.equal(saved[name], tensors[name])
