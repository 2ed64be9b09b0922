"""The rows of the suite: who takes part, as what, and what each of them needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from nanospec.cli.measure import AUTOREGRESSIVE
from nanospec.decode import SpeculativeDecoder

TRANSFORMERS, ASSISTED, LOOKUP = "transformers", "transformers-assisted", "transformers-lookup"
PEERS = (TRANSFORMERS, ASSISTED, LOOKUP)
VLLM, VLLM_EAGLE, VLLM_NANOSPEC = "vllm", "vllm-eagle", "vllm-nanospec"
VLLM_ROWS = (VLLM, VLLM_EAGLE, VLLM_NANOSPEC)
PAIR = "draft"  # the drafter of the pair itself; others are named after their option
FULL = "full"


class Row(NamedTuple):
    """name        in tables; stands_for: the method and how it is configured
    drafter     PAIR, or the option that brings it; None: nobody drafts, or transformers does
    vocab       of our engine, as `SpeculativeDecoder` takes it; {file} is what the option `needs` says; in vLLM a name
    needs       option without which the row is left out
    is_default  whether it takes part unasked
    """

    name: str
    stands_for: str
    drafter: str | None = None
    vocab: str | None = None
    needs: str | None = None
    is_default: bool = True


ROWS = (
    Row(AUTOREGRESSIVE, "plain decoding by our engine, 1x"),
    Row(TRANSFORMERS, "transformers, greedy generate: sdpa, DynamicCache"),
    Row(
        ASSISTED,
        "transformers, generate with assistant_model: number of tokens, schedule and confidence as it sets them",
        needs="assistant",
    ),
    Row(LOOKUP, "transformers, generate with prompt_lookup_num_tokens=10"),
    Row(FULL, "EAGLE-2: the pair's draft over the full vocabulary", PAIR, "full"),
    Row("eagle3-full", "EAGLE-3 over the full vocabulary", "eagle3", "full", "eagle3"),
    Row("medusa-full", "Medusa over the full vocabulary", "medusa", "full", "medusa"),
    Row("static-32768", "FR-Spec: the pair's draft over the 32,768 most frequent ids", PAIR, "static:32768"),
    Row("static-4096", "FR-Spec with 4,096 ids", PAIR, "static:4096"),
    Row("trimmed", "VocabTrim: the pair's draft over a calibrated list", PAIR, "static:{file}", "trim-list"),
    Row("routed", "DynaSpec: clusters that a router picks for every level", PAIR, "routed:{file}", "router"),
    Row("in-context", "NanoSpec: ids of the text and of the target's suggestions", PAIR, "in-context"),
    Row("hybrid", "1,024 frequent ids, in-context and the successor prior", PAIR, "hybrid:1024+prior"),
    Row(VLLM, "vLLM, plain decoding", needs="vllm"),
    Row(VLLM_EAGLE, "vLLM, its own speculation with the pair's draft over the full vocabulary", VLLM, FULL, "vllm"),
    Row(VLLM_NANOSPEC, "vLLM with our plugin, the same draft", VLLM, "plugin", "vllm"),
    Row(
        "assistant-in-context",
        "the assistant as our drafter, in-context",
        "assistant",
        "in-context",
        "assistant",
        False,
    ),
    Row("assistant-full", "the assistant as our drafter, full vocabulary", "assistant", "full", "assistant", False),
    Row("eagle3-in-context", "EAGLE-3, in-context", "eagle3", "in-context", "eagle3", False),
    Row("medusa-in-context", "Medusa, in-context", "medusa", "in-context", "medusa", False),
    Row("hybrid-auto", "as many frequent ids as pay, in-context and prior", PAIR, "hybrid:auto+prior", None, False),
)
BY_NAME = {row.name: row for row in ROWS}


class LeftOut(NamedTuple):
    """A row that does not take part, and why."""

    name: str
    reason: str


def choose_rows(
    asked: Sequence[str],
    options: Mapping[str, str | None],
    decoder: SpeculativeDecoder,
    reasons: Mapping[str, str] = MappingProxyType({}),
) -> tuple[list[Row], list[LeftOut]]:
    """The rows that take part, plain decoding always among them, and the default ones that cannot.

    asked: names; empty: all default rows. options: by their names, what was given. reasons: by row name, why it cannot
    although it has its option. A row that was asked for by name and cannot take part raises ValueError, and so does a
    name that is none.
    """
    unknown = [name for name in asked if name not in BY_NAME]
    if unknown:
        raise ValueError(f"row must be one of {', '.join(BY_NAME)}, got {', '.join(unknown)}")
    wanted = [row for row in ROWS if row.name in asked or row.name == AUTOREGRESSIVE or (not asked and row.is_default)]
    chosen, left_out = [], []
    for row in wanted:
        reason = _what_lacks(row, options, decoder) or reasons.get(row.name)
        if reason is None:
            chosen.append(row)
        elif row.name in asked:
            raise ValueError(f"row {row.name} cannot take part: {reason}")
        else:
            left_out.append(LeftOut(row.name, reason))
    return chosen, left_out


def vocab_of(row: Row, options: Mapping[str, str | None]) -> str:
    """What the row's vocabulary is called by `SpeculativeDecoder`."""
    assert row.vocab is not None, f"{row.name} has no vocabulary"
    return row.vocab.format(file=options[row.needs] if row.needs else "")


def full_row_of(row: Row) -> str | None:
    """Name of the row with the same drafter over the full vocabulary, which accept lengths are relative to."""
    if row.drafter is None:
        return None
    return next(other.name for other in ROWS if (other.drafter, other.vocab) == (row.drafter, FULL))


def _what_lacks(row: Row, options: Mapping[str, str | None], decoder: SpeculativeDecoder) -> str | None:
    if row.needs is not None and options[row.needs] is None:
        return f"--{row.needs} was not given"
    if row.drafter == PAIR and row.needs is None and row.vocab is not None and row.vocab != FULL:
        try:
            decoder.with_vocab(row.vocab)
        except ValueError as error:
            return str(error)
    return None
