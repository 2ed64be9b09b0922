"""The successor table against plain dicts, update after update."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec.ops.successor_update import successor_update
from nanospec.ops.successor_update_reference import Table, successor_update_reference

VOCAB_SIZE = 7
# Powers of two multiply exactly, so both sides round alike and ties are ties.
WEIGHTS, DECAY = (1.0, 0.5, 0.25), 0.5

ids = st.integers(-2, VOCAB_SIZE + 1)
occurrences = st.tuples(ids, st.lists(ids, min_size=3, max_size=3))


def new_table(num_kept: int, batch_size: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    shape = batch_size, VOCAB_SIZE + 1, num_kept
    return torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.float64)


def update(table: tuple[torch.Tensor, torch.Tensor], batch: list[list]) -> None:
    keys = torch.tensor([[key for key, _ in row] for row in batch], dtype=torch.int64)
    successors = torch.tensor([[after for _, after in row] for row in batch], dtype=torch.int64)
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)[None, None]
    successor_update(keys, successors.view(*keys.shape, 3), weights, *table, DECAY)


def rows(table: tuple[torch.Tensor, torch.Tensor], sequence: int = 0) -> Table:
    read = {}
    for key in range(VOCAB_SIZE + 1):
        entries = zip(table[0][sequence, key].tolist(), table[1][sequence, key].tolist(), strict=True)
        if kept := {successor: strength for successor, strength in entries if strength > 0}:
            read[key] = kept
    return read


def is_id(token: int) -> bool:
    return 0 <= token < VOCAB_SIZE


def reference_update(table: Table, row: list, num_kept: int) -> None:
    seen = [
        (key, [(s, w) for s, w in zip(after, WEIGHTS, strict=True) if is_id(s)]) for key, after in row if is_id(key)
    ]
    successor_update_reference(table, seen, num_kept, DECAY)


@settings(max_examples=100)
@given(st.lists(st.lists(occurrences, max_size=12), max_size=4), st.integers(1, 5))
def test_follows_the_dicts(updates, num_kept):
    table, expected = new_table(num_kept), {}
    for row in updates:
        update(table, [row])
        reference_update(expected, row, num_kept)
        assert rows(table) == {key: kept for key, kept in expected.items() if kept}
        strength = table[1]
        assert torch.equal(strength, strength.sort(dim=-1, descending=True).values), "strongest first"


@given(st.lists(st.tuples(occurrences, occurrences), min_size=1, max_size=8))
def test_sequences_do_not_meet(pairs):
    together, num_kept = new_table(3, batch_size=2), 3
    columns = [list(column) for column in zip(*pairs, strict=True)]
    update(together, columns)
    for sequence, column in enumerate(columns):
        alone = new_table(num_kept)
        update(alone, [column])
        assert rows(together, sequence) == rows(alone)


def test_keeps_the_worked_example():
    table = new_table(4)
    update(table, [[(6, [1, -1, -1]), (6, [2, -1, -1])]])
    assert rows(table) == {6: {2: 1.0, 1: 0.5}}
