"""The names a user may ask for, and what they get."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nanospec.vocab.full import FullVocab
from nanospec.vocab.in_context import InContextVocab
from nanospec.vocab.static import StaticVocab
from nanospec.vocab.static_list import write_static_list
from nanospec.vocab_selector import VocabSelector, build_reduced_vocab, build_vocab_selector

WEIGHT = torch.randn(10, 4)
FREQUENT_IDS = torch.tensor([5, 2, 8])


LISTS = ("static:2", "hybrid:2", "hybrid:auto")
BAD_LISTS = [
    ([5, 2], TypeError, "frequent_ids must be a tensor, got list"),
    (torch.tensor([[5, 2]]), ValueError, r"frequent_ids must be 1-D, got shape \(1, 2\)"),
    (torch.tensor([5.0, 2.0]), TypeError, "frequent_ids: token ids must be integers, got 5.0"),
    (torch.tensor([5, 10]), ValueError, "frequent_ids: token ids must be between 0 and 9, got 10 at index 1"),
    (torch.tensor([-1, 5]), ValueError, "frequent_ids: token ids must be between 0 and 9, got -1 at index 0"),
    (torch.tensor([5, 5]), ValueError, "frequent_ids: token ids must be distinct, got 5"),
]


@pytest.mark.parametrize("spec", LISTS)
@pytest.mark.parametrize(("ids", "error", "message"), BAD_LISTS)
def test_a_list_is_checked_for_a_draft_of_few_ids_too(spec, ids, error, message) -> None:
    with pytest.raises(error, match=message):
        build_reduced_vocab(spec, WEIGHT[:4], torch.tensor([1, 2, 5, 9]), 10, 3, ids)


def test_each_name_gives_its_policy(tmp_path: Path) -> None:
    path = tmp_path / "list.safetensors"
    write_static_list(path, FREQUENT_IDS)
    table = [
        ("full", FullVocab, "full", list(range(10))),
        ("in-context", InContextVocab, "in-context", []),
        ("static:2", StaticVocab, "static-2", [5, 2]),
        (f"static:{path}", StaticVocab, "static-3", [5, 2, 8]),
    ]
    for spec, policy, name, ids in table:
        selector = build_vocab_selector(spec, WEIGHT, capacity=6, frequent_ids=FREQUENT_IDS)
        assert isinstance(selector, policy)
        assert isinstance(selector, VocabSelector)
        assert selector.name == name
        vocab = selector.select()
        assert vocab.draft_ids[0, : int(vocab.count)].tolist() == ids


def test_a_built_policy_is_returned_as_it_is() -> None:
    selector = FullVocab(WEIGHT)
    assert build_vocab_selector(selector, WEIGHT) is selector


@pytest.mark.parametrize(("packed", "has_rows"), [(None, True), (True, True), (False, False)])
def test_rows_are_packed_on_a_cpu_unless_asked_otherwise(packed: bool | None, has_rows: bool) -> None:
    vocab = build_vocab_selector("in-context", WEIGHT, capacity=6, packed=packed).select()
    assert (vocab.rows is not None) == has_rows
    assert vocab.draft_ids.shape == (1, 6)


@pytest.mark.parametrize("spec", ["", "none", "static", "static:", "in_context", "full:3"])
def test_an_unknown_policy_lists_the_choices(spec: str) -> None:
    with pytest.raises(ValueError, match=r"'full', 'in-context' .*'static:N' .* got '"):
        build_vocab_selector(spec, WEIGHT, frequent_ids=FREQUENT_IDS)


@pytest.mark.parametrize(
    ("spec", "frequent_ids", "error", "message"),
    [
        (7, None, TypeError, "or a VocabSelector, got int"),
        ("static:2", None, ValueError, "'static:2' needs a list of frequent ids"),
        ("static:4", FREQUENT_IDS, ValueError, "'static:4' needs as many frequent ids, the list has 3"),
        ("static:0", FREQUENT_IDS, ValueError, "at least 1 id, got 0"),
        ("static:-2", FREQUENT_IDS, ValueError, "at least 1 id, got -2"),
        ("static:none.json", FREQUENT_IDS, FileNotFoundError, "static list not found: none.json"),
        ("static:abc", FREQUENT_IDS, FileNotFoundError, "a number of ids or a file after the colon, .*'static:abc'"),
        ("hybrid:2+priors", FREQUENT_IDS, FileNotFoundError, r"'\+prior' as the only suffix .*'hybrid:2\+priors'"),
        ("hybrid:x+prior", FREQUENT_IDS, FileNotFoundError, "static list not found: x: .*got 'hybrid:x'"),
        ("static:2", torch.tensor([3, 3]), ValueError, "distinct, got 3"),
        *[(spec, ids, error, message) for spec in LISTS for ids, error, message in BAD_LISTS],
        ("in-context", None, ValueError, "capacity must be between 1 and vocab_size 10, got 3072"),
    ],
)
def test_what_cannot_be_built_is_refused(spec, frequent_ids, error, message) -> None:
    with pytest.raises(error, match=message):
        build_vocab_selector(spec, WEIGHT, frequent_ids=frequent_ids)
