"""The comparison for a reader: a table, the differences found, and what the figures mean."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from nanospec.cli.measure import AUTOREGRESSIVE, Difference
from nanospec.cli.rows import FULL, Row

PLAIN_WIDTH = 140  # of a file or pipe, which has no width of its own
UNLIMITED_WIDTH = 1000
MAX_LISTED_DIFFERENCES = 10
GLOSS = (
    "accept length: tokens per target pass. draft vs no head: draft time over that of the same draft without its "
    "output head.",
    "upkeep: what keeping the vocabulary takes, of the decoding time. near ties: prompts where rounding chose between "
    "two equally good tokens.",
)
PREFILL_IS_APART = (
    "tokens/s and the speed-ups beside it leave out the prompt pass, which has its own column (prefill ms per prompt); "
    "end to end counts it in."
)

HEADINGS = (
    "vocabulary",
    "tokens/s",
    "vs plain\ndecoding",
    "vs\nfull",
    "accept\nlength",
    "accept\nof full",
    "rows\nscored",
    "draft\nms/step",
    "draft\nof full",
    "draft\nvs no\nhead",
    "upkeep",
    "prefill\nms",
    "end to\nend vs\nplain\ndecoding",
    "identical",
    "near\nties",
)


def print_comparison(rows: Sequence[Row], differences: Sequence[Difference]) -> None:
    """Table and sentences on stdout; a terminal too narrow for the rows gets them as columns."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)
    table = number_table([HEADINGS, *(_cells(row) for row in rows)])
    options = console.options.update(width=UNLIMITED_WIDTH)
    if Measurement.get(console, options, table).maximum > console.width:
        headings = [heading.replace("\n", " ") for heading in HEADINGS]
        table = number_table(list(zip(headings, *(_cells(row) for row in rows), strict=True)))
    console.print(table)
    for line in (*_difference_lines(differences), *explain(rows)):
        console.print(line, markup=False, soft_wrap=not console.is_terminal)


def explain(rows: Sequence[Row]) -> list[str]:
    """The gain of the last small vocabulary (in-context where it was run), the fastest row, what the columns mean and
    what is timed, and how exact tokens are."""
    small = [row for row in rows if row.vocab not in (AUTOREGRESSIVE, FULL)]
    chosen = next((row for row in small if row.vocab == "in-context"), small[-1] if small else None)
    full = next((row for row in rows if row.vocab == FULL), None)
    sentences = []
    if chosen is not None and full is not None:
        sentences.append(
            f"{chosen.vocab} drafts from {_number(chosen.mean_active_vocab)} rows instead of "
            f"{_number(full.mean_active_vocab)}: draft time is {percent(chosen.draft_vs_full)} of full's "
            f"({_times(chosen.draft_vs_headless)} that of a draft without any head), accept length is "
            f"{percent(chosen.accept_vs_full)} of full's, and decoding runs at {_times(chosen.speedup_vs_full)} the "
            f"speed of full, {_times(chosen.speedup_vs_autoregressive)} that of plain (autoregressive) decoding."
        )
    return [*sentences, *_fastest(rows), *GLOSS, PREFILL_IS_APART, _exactness(rows)]


def _fastest(rows: Sequence[Row]) -> list[str]:
    timed = [(row.tokens_per_second, row) for row in rows if row.tokens_per_second is not None]
    if not timed:
        return []
    speed, row = max(timed, key=lambda one: one[0])
    times = "" if row.vocab == AUTOREGRESSIVE else f", {_times(row.speedup_vs_autoregressive)} plain decoding's speed"
    return [f"Fastest here: {row.vocab}, {_number(speed, 1)} tokens/s{times}."]


def _exactness(rows: Sequence[Row]) -> str:
    wrong = [row.vocab for row in rows if not row.identical]
    if wrong:
        return f"NOT IDENTICAL to autoregressive decoding: {', '.join(wrong)}."
    near_ties = sum(row.near_ties for row in rows)
    if near_ties:
        return (
            f"The target verifies every token over its whole vocabulary: all tokens are autoregressive decoding's own, "
            f"up to {near_ties} near-ties in which rounding chose between two equally good tokens (listed above)."
        )
    return (
        "The target verifies every token over its whole vocabulary: all tokens are exactly autoregressive decoding's."
    )


def number_table(lines: Sequence[Sequence[str]]) -> Table:
    """A table of the lines, the first of them its headings; everything but the first column is a number."""
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for index, heading in enumerate(lines[0]):
        table.add_column(heading, justify="right" if index else "left", no_wrap=index == 0)
    for line in lines[1:]:
        table.add_row(*line)
    return table


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.vocab,
        _number(row.tokens_per_second, 1),
        _times(row.speedup_vs_autoregressive),
        _times(row.speedup_vs_full),
        _number(row.mean_accept_length, 2),
        percent(row.accept_vs_full),
        _number(row.mean_active_vocab),
        _number(row.draft_ms_per_step, 2),
        percent(row.draft_vs_full),
        _times(row.draft_vs_headless),
        percent(row.vocabulary_share, 1),
        _number(row.prefill_ms_per_prompt, 1),
        _times(row.end_to_end_vs_autoregressive),
        "yes" if row.identical else "NO",
        str(row.near_ties),
    )


def _difference_lines(differences: Sequence[Difference]) -> list[str]:
    lines = [
        f"{d.vocab}, prompt {d.prompt + 1}, token {d.position + 1}: "
        + _reason(d)
        + ("" if d.near_tie else " -> DIFFERENT")
        for d in sorted(differences, key=lambda d: d.near_tie)
    ]
    left_out = len(lines) - MAX_LISTED_DIFFERENCES
    return [*lines[:MAX_LISTED_DIFFERENCES], f"... and {left_out} more"] if left_out > 0 else lines


def _reason(difference: Difference) -> str:
    if difference.margin is not None:
        return f"margin {difference.margin:.3g}, near-tie below {difference.bound:.3g}"
    return "another token for the same random number" if difference.near_tie else "no near-tie"


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def percent(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f}%"
