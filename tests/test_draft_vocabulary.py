from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from nanospec.draft_vocabulary import DraftVocabulary, HasVocabularyViews

V, D, K = 20, 4, 6
MODES = [torch.enable_grad, torch.no_grad, torch.inference_mode]


def id_lists() -> st.SearchStrategy[list[int]]:
    """At most K distinct ids, repeated or not."""
    return st.lists(st.integers(0, V - 1), max_size=K, unique=True).flatmap(
        lambda distinct: st.lists(st.sampled_from(distinct), max_size=2 * K) if distinct else st.just([])
    )


def full_lists() -> st.SearchStrategy[list[int]]:
    return st.permutations(range(V)).map(lambda ids: ids[:K])


def updates() -> st.SearchStrategy[list[list[int]]]:
    return st.lists(st.one_of(id_lists(), full_lists()), min_size=1, max_size=6)


def head_weight(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(V, D, generator=generator).to(dtype))


def active_ids(vocabulary: DraftVocabulary) -> list[int]:
    return vocabulary.draft_ids[: int(vocabulary.count)].tolist()


def check_rows(vocabulary: DraftVocabulary, weight: Tensor) -> None:
    ids, rows = active_ids(vocabulary), vocabulary.pack(weight)
    assert rows is not None, "a weight on the CPU is packed"
    assert torch.equal(rows[: len(ids)], weight.detach()[ids])


def contents(vocabulary: DraftVocabulary, *rows: Tensor) -> list[Tensor]:
    return [tensor.clone() for tensor in (vocabulary.draft_ids, vocabulary.count, *rows)]


@given(updates())
def test_the_first_columns_are_the_distinct_ids_and_the_rest_repeats_the_first(sequence: list[list[int]]) -> None:
    vocabulary = DraftVocabulary(V, K)
    for ids in sequence:
        vocabulary.update(ids)
        count = int(vocabulary.count)
        assert sorted(active_ids(vocabulary)) == sorted(set(ids))
        assert count == len(set(ids))
        assert (vocabulary.draft_ids[count:] == vocabulary.draft_ids[0]).all()


@given(updates())
def test_an_id_that_stays_keeps_its_column_while_there_is_one(sequence: list[list[int]]) -> None:
    vocabulary = DraftVocabulary(V, K)
    for ids in sequence:
        before = active_ids(vocabulary)
        vocabulary.update(ids)
        after = active_ids(vocabulary)
        assert all(after[slot] == token for slot, token in enumerate(before[: len(after)]) if token in ids)


def test_updates_of_a_table_a_person_can_check() -> None:
    vocabulary = DraftVocabulary(10, 4)
    for ids, expected in [
        ([5, 3, 5], [3, 5, 3, 3]),
        ([9, 5, 1, 3], [3, 5, 1, 9]),
        ([9, 1], [1, 9, 1, 1]),
        ([], [1, 1, 1, 1]),
        ([0], [0, 0, 0, 0]),
    ]:
        vocabulary.update(ids)
        assert vocabulary.draft_ids.tolist() == expected
        assert vocabulary.count.tolist() == [len(set(ids))]


@given(updates(), st.data())
def test_packed_rows_follow_updates_and_changes_of_the_weight(sequence: list[list[int]], data: st.DataObject) -> None:
    vocabulary, weight = DraftVocabulary(V, K), head_weight()
    late_weight = head_weight(1, torch.float64)
    for ids in sequence:
        change = data.draw(st.sampled_from(["none", "before the update", "after it"]))
        if change == "before the update":
            with torch.no_grad():
                weight.mul_(-1.5)
        vocabulary.update(ids)
        if change == "after it":
            with torch.no_grad():
                weight.add_(1)
        check_rows(vocabulary, weight)
        if data.draw(st.booleans()):
            check_rows(vocabulary, late_weight)


@given(updates())
def test_no_tensor_ever_moves(sequence: list[list[int]]) -> None:
    vocabulary, weight = DraftVocabulary(V, K), head_weight()
    rows, views = vocabulary.pack(weight), vocabulary.vocabulary_views()
    tensors = (views.draft_ids, views.count, rows)
    addresses = [tensor.data_ptr() for tensor in tensors]
    for ids in sequence:
        vocabulary.update(ids)
        views_now = vocabulary.vocabulary_views()
        held = (views_now.draft_ids, views_now.count, vocabulary.pack(weight))
        assert all(now is then for now, then in zip(held, tensors, strict=True))
        assert [tensor.data_ptr() for tensor in held] == addresses


@pytest.mark.parametrize(
    ("ids", "error", "text"),
    [
        ([0.5], TypeError, "ids must be integers, got torch.float32"),
        (torch.tensor([True]), TypeError, "ids must be integers, got torch.bool"),
        (torch.tensor([1j]), TypeError, "ids must be integers, got torch.complex64"),
        ([[1, 2]], ValueError, r"ids must be 1-D, got shape \(1, 2\)"),
        (torch.tensor(3), ValueError, r"ids must be 1-D, got shape \(\)"),
        ([1, V], ValueError, f"ids must be between 0 and {V - 1}, got {V}"),
        ([-1, 1], ValueError, f"ids must be between 0 and {V - 1}, got -1"),
        (list(range(K + 1)), ValueError, f"ids must hold at most capacity {K} distinct ids, got {K + 1}"),
    ],
)
def test_wrong_ids_are_refused_by_name_and_nothing_is_written(
    ids: Tensor | Sequence[int], error: type[Exception], text: str
) -> None:
    vocabulary = DraftVocabulary(V, K)
    vocabulary.update([4, 2])
    weight = head_weight()
    rows = vocabulary.pack(weight)
    before = contents(vocabulary, rows)
    with pytest.raises(error, match=text):
        vocabulary.update(ids)
    assert all(torch.equal(now, then) for now, then in zip(contents(vocabulary, rows), before, strict=True))


@pytest.mark.parametrize("capacity", [0, V + 1])
def test_a_capacity_that_does_not_fit_is_refused(capacity: int) -> None:
    with pytest.raises(ValueError, match=f"capacity must be between 1 and vocab_size {V}, got {capacity}"):
        DraftVocabulary(V, capacity)


@pytest.mark.parametrize("shape", [(V + 1, D), (V,)])
def test_a_weight_of_another_vocabulary_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"weight must be \[{V}, D\], got shape"):
        DraftVocabulary(V, K).pack(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64])
def test_ids_come_in_any_integer_type(dtype: torch.dtype) -> None:
    vocabulary = DraftVocabulary(V, K)
    vocabulary.update(torch.tensor([7, 1, 7], dtype=dtype))
    assert active_ids(vocabulary) == [1, 7]


def test_a_vocabulary_may_hold_every_id() -> None:
    vocabulary = DraftVocabulary(V, V)
    vocabulary.update(range(V))
    assert active_ids(vocabulary) == list(range(V))


def test_it_starts_empty_and_says_what_it_is() -> None:
    vocabulary = DraftVocabulary(V, K)
    assert vocabulary.count.tolist() == [0]
    assert repr(vocabulary) == f"DraftVocabulary(vocab_size={V}, capacity={K}, device=cpu)"
    assert isinstance(vocabulary, HasVocabularyViews)
    assert vocabulary.vocabulary_views().vocab_size == V


@pytest.mark.parametrize("built_in", MODES)
@pytest.mark.parametrize("used_in", MODES)
def test_grad_mode_does_not_matter(built_in: type, used_in: type) -> None:
    weight = head_weight()
    with built_in():
        vocabulary = DraftVocabulary(V, K)
        rows = vocabulary.pack(weight)
        vocabulary.update([1, 2])
    for mode in (used_in, built_in):
        with mode():
            vocabulary.update([2, 5, 9])
            check_rows(vocabulary, weight)
            vocabulary.update([7])
            check_rows(vocabulary, weight)
    assert not any(tensor.is_inference() for tensor in (vocabulary.draft_ids, vocabulary.count, rows))
    assert not rows.requires_grad


def test_weights_that_do_not_count_writes_are_not_packed() -> None:
    vocabulary = DraftVocabulary(V, K)
    with torch.inference_mode():
        weight = torch.randn(V, D)
    assert vocabulary.pack(weight) is None


def test_a_weight_in_training_written_in_inference_mode_is_seen() -> None:
    vocabulary, weight = DraftVocabulary(V, K), head_weight()
    vocabulary.update([1, 2])
    check_rows(vocabulary, weight)
    with torch.inference_mode():
        weight.mul_(2)
    check_rows(vocabulary, weight)


def test_what_an_optimizer_step_has_written_is_seen() -> None:
    vocabulary, weight = DraftVocabulary(V, K), head_weight()
    vocabulary.update([1, 2])
    check_rows(vocabulary, weight)
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    check_rows(vocabulary, weight)


def test_one_weight_is_packed_once() -> None:
    vocabulary, weight, other = DraftVocabulary(V, K), head_weight(), head_weight()
    rows = vocabulary.pack(weight)
    assert vocabulary.pack(weight) is rows
    assert vocabulary.pack(other) is not rows


def test_a_weight_that_changed_its_type_is_packed_anew_and_updates_go_on() -> None:
    vocabulary, head = DraftVocabulary(V, K), nn.Linear(D, V, bias=False)
    vocabulary.update([1, 2])
    check_rows(vocabulary, head.weight)
    head.double()  # the same parameter object with other data: neither a new weight nor a new version
    vocabulary.update([2, 3])
    assert vocabulary.pack(head.weight).dtype == torch.float64
    check_rows(vocabulary, head.weight)


def test_data_that_is_replaced_is_seen() -> None:
    vocabulary, weight = DraftVocabulary(V, K), head_weight()
    vocabulary.update([1, 2])
    check_rows(vocabulary, weight)
    weight.data = torch.ones(V, D)
    check_rows(vocabulary, weight)


def test_numbers_that_come_to_lie_where_old_ones_lay_are_seen() -> None:
    vocabulary, head = DraftVocabulary(2000, K), nn.Linear(64, 2000, bias=False)
    vocabulary.update([1, 2])
    for _ in range(8):
        check_rows(vocabulary, head.weight)
        head.bfloat16()
        head.float()


def test_a_copy_has_the_ids_and_a_life_of_its_own() -> None:
    vocabulary = DraftVocabulary(V, K)
    vocabulary.update([1, 2])
    twin = copy.deepcopy(vocabulary)
    vocabulary.update([3])
    assert active_ids(twin) == [1, 2]


def test_a_vocabulary_keeps_no_weight_alive() -> None:
    vocabulary, weight = DraftVocabulary(V, K), head_weight()
    rows = weakref.ref(vocabulary.pack(weight))
    weight_is_alive = weakref.ref(weight)
    del weight
    gc.collect()
    assert weight_is_alive() is None
    assert rows() is None, "nor the rows of one that is gone"
    vocabulary.update([3])
    assert active_ids(vocabulary) == [3]
