"""`successor_update` as a Python dict of dicts, key by key in order of time."""

from __future__ import annotations

from collections.abc import Iterable

Table = dict[int, dict[int, float]]


def successor_update_reference(
    table: Table, occurrences: Iterable[tuple[int, list[tuple[int, float]]]], num_kept: int, decay: float
) -> None:
    """occurrences: (key, [(successor, weight), ..]) of one update, oldest first; changes key -> {id: strength}."""
    touched = set()
    for key, followers in occurrences:
        row = table.setdefault(key, {})
        for successor in row:
            row[successor] *= decay
        for successor, weight in followers:
            row[successor] = max(row.get(successor, 0.0), weight)
        touched.add(key)
    for key in touched:
        strongest = sorted(table[key].items(), key=lambda entry: (-entry[1], entry[0]))
        table[key] = dict(strongest[:num_kept])
