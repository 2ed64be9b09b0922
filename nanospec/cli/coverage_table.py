"""The rows of `nanospec coverage` for a reader: all contexts, then by task, then by depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from nanospec.cli.table import number_table, percent

PLAIN_WIDTH = 140  # of a file or pipe, which has no width of its own
HEADINGS = (
    "vocabulary", "rows\nscored", "accept\nlength", "accept\nof full", "95 %\ninterval", "coverage", "top-1\nrecall",
    "tree\nrecall", "upkeep",
)  # fmt: skip
MEANING = (
    "One speculative step behind every context. full is EAGLE-2's own tree (draft temperature 1). Coverage: the "
    "target's own next tokens that the draft vocabulary holds when the tree is grown. Recall: the same of the full "
    "drafter's first choices, and of all nodes of its tree. Upkeep: the update of the vocabulary as a share of a step, "
    "on this machine."
)


def print_coverage(rows: Sequence[dict[str, Any]]) -> None:
    """Three tables and what they mean on stdout."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)
    tasks = list(rows[0]["per_task"])
    depths = [step["depth"] for step in rows[0]["per_depth"]]
    console.print(number_table([HEADINGS, *(_cells(row) for row in rows)]))
    by_task = [(row["vocab"], *(percent(row["per_task"][task]["accept_vs_full"], 1) for task in tasks)) for row in rows]
    counts = [f"{task}\n{rows[0]['per_task'][task]['contexts']:,}" for task in tasks]
    console.print("\naccept length of full's, by task (contexts below its name)", markup=False)
    console.print(number_table([("vocabulary", *counts), *by_task]))
    by_depth = [(row["vocab"], *(percent(step["coverage"], 1) for step in row["per_depth"])) for row in rows]
    console.print("\ncoverage by depth", markup=False)
    console.print(number_table([("vocabulary", *map(str, depths)), *by_depth]))
    console.print(MEANING, markup=False, soft_wrap=not console.is_terminal)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    low, high = row["accept_vs_full_95"]
    return (
        row["vocab"],
        f"{row['mean_active_vocab']:,.0f}",
        f"{row['accept_length']:.2f}",
        percent(row["accept_vs_full"], 1),
        f"{100 * low:.1f} .. {100 * high:.1f}%",
        percent(row["coverage"], 1),
        percent(row["recall_top1"], 1),
        percent(row["recall_tree"], 1),
        percent(row["upkeep_share"], 1),
    )
