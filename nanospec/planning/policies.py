"""Draft vocabularies as a plan knows them: how many rows each scores, how long a step of it is expected to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from nanospec.checkpoints.detect import Family
from nanospec.costs import memory_bound_speedup
from nanospec.planning.step_cost import (
    DraftRows,
    Pair,
    StepCost,
    check_pair,
    draft_seconds,
    floor_seconds,
    level_seconds,
    plain_seconds,
    step_cost,
)

CONTEXT_ROWS = 384  # active rows beside the pinned ones, in the mean over 1,000 held-out texts and seven tasks
IN_CONTEXT_ROWS = 704  # of an in-context vocabulary without pinned ones, likewise
DEFAULT_POLICIES = ("full", "static:32768", "in-context", "hybrid:1024")


class AcceptLength(NamedTuple):
    """Tokens per step, the bonus token included, and where that figure comes from."""

    tokens: float
    source: str


FR_SPEC = "published: FR-Spec, Llama-3-8B, EAGLE-2, 60 nodes"
PUBLISHED_OF = Family.EAGLE  # other families accept otherwise; a language model's size alone decides more than the rows
PUBLISHED = {
    "full": AcceptLength(3.89, FR_SPEC),
    "static": AcceptLength(3.63, FR_SPEC + ", 32k ids"),
    "in-context": AcceptLength(
        3.89 * 3.59 / 3.80, "published: NanoSpec's share of EAGLE-2's, Llama-3-8B, of FR-Spec's figure"
    ),
    "hybrid": AcceptLength(3.89, "assumed: full's; the embedded pair has 98 to 100 % of it"),
}


class Policy(NamedTuple):
    """name as the user asked for it; kind: what is before the colon."""

    name: str
    kind: str
    rows: DraftRows


@dataclass(frozen=True)
class PolicyPlan:
    """What a policy is expected to do with a pair. Times in milliseconds.

    level_vs_headless, draft_vs_full, speedup_...  ratios of the times here
    accept_length            and all that needs one, tokens/s and speed-ups: None where none is known
    floor_ms, floor_speedup  of a step in which only weights count, each read once per pass at the device's bandwidth,
                             and its tokens/s over those of plain decoding on the same terms (MBSU)
    """

    policy: str
    rows: int
    accept_length: float | None
    accept_length_source: str | None
    level_ms: float
    draft_ms: float
    verify_ms: float
    vocabulary_ms: float
    step_ms: float
    floor_ms: float
    level_vs_headless: float
    draft_vs_full: float
    tokens_per_second: float | None
    speedup_vs_autoregressive: float | None
    speedup_vs_full: float | None
    floor_speedup: float | None


def parse_policy(text: str, num_ids: int, can_pack: bool = True) -> Policy:
    """Rows of "full", "in-context", "in-context:ROWS", "static:N" or "hybrid:N" for a head of `num_ids` rows.

    Raises ValueError listing the choices, and for a number that is none or below 1.
    """
    kind, colon, detail = text.partition(":")
    if text == "hybrid:auto":
        raise ValueError("vocab hybrid:auto cannot be planned, as its size follows the text: give hybrid:N")
    if kind not in PUBLISHED or (kind in ("static", "hybrid")) > bool(colon) or (kind == "full" and colon):
        raise ValueError(f"vocab must be full, in-context, in-context:ROWS, static:N or hybrid:N, got {text!r}")
    if colon and (not detail.isdecimal() or int(detail) < 1):
        raise ValueError(f"vocab {text!r} must end in a positive whole number, got {detail!r}")
    count = int(detail) if colon else {"full": num_ids}.get(kind, IN_CONTEXT_ROWS)
    count += CONTEXT_ROWS if kind == "hybrid" else 0
    follows = kind in ("in-context", "hybrid")
    packed = can_pack or kind == "full"
    return Policy(text, kind, DraftRows(min(count, num_ids), follows, packed))


def plan_policies(
    pair: Pair, policies: Sequence[Policy], accept_lengths: Mapping[str, AcceptLength] | None = None
) -> list[PolicyPlan]:
    """One plan per policy. accept_lengths: by name; what is missing there is as published for its kind, at most what
    the tree allows, and unknown under a language-model draft: a step then takes in what the pair's setting says.

    Raises ValueError as `step_cost`.
    """
    plans = []
    for policy in policies:
        length = (accept_lengths or {}).get(policy.name) or _published(policy, pair)
        plans.append(_plan(_accepting(pair, length), policy, length, _full_rate(pair, accept_lengths)))
    return plans


def full_rows(pair: Pair) -> DraftRows:
    """All rows of the draft's head."""
    return DraftRows(pair.draft.body.num_ids)


def _published(policy: Policy, pair: Pair) -> AcceptLength | None:
    if pair.draft.family == Family.CAUSAL_LM:
        return None
    length, most = PUBLISHED[policy.kind], pair.setting.tree.depth + 1
    return length if length.tokens <= most else AcceptLength(most, f"the most that a tree of depth {most - 1} yields")


def _accepting(pair: Pair, length: AcceptLength | None) -> Pair:
    accepting = pair
    if length is not None:
        accepting = pair._replace(setting=replace(pair.setting, accept_length=length.tokens))
    check_pair(accepting)
    return accepting


def _full_rate(pair: Pair, accept_lengths: Mapping[str, AcceptLength] | None) -> float | None:
    """Tokens per second over the whole head."""
    full = parse_policy("full", pair.draft.body.num_ids)
    length = (accept_lengths or {}).get(full.name) or _published(full, pair)
    return length and length.tokens / step_cost(_accepting(pair, length), full.rows).step


def _floor_speedup(pair: Pair, policy: Policy, tokens: float) -> float:
    target, body = pair.target, pair.draft.body
    head, own_head = target.hidden_size * target.num_ids, body.hidden_size * policy.rows.num_rows
    return memory_bound_speedup(
        tokens,
        pair.setting.tree.depth,
        round(body.num_weights(1) + own_head),
        round(target.num_weights(1) + head),
    )


def _plan(pair: Pair, policy: Policy, length: AcceptLength | None, full_rate: float | None) -> PolicyPlan:
    cost: StepCost = step_cost(pair, policy.rows)
    rate = length and length.tokens / cost.step
    return PolicyPlan(
        policy=policy.name,
        rows=policy.rows.num_rows,
        accept_length=length and length.tokens,
        accept_length_source=length and length.source,
        level_ms=1e3 * cost.level,
        draft_ms=1e3 * cost.draft,
        verify_ms=1e3 * cost.verify,
        vocabulary_ms=1e3 * cost.vocabulary,
        step_ms=1e3 * cost.step,
        floor_ms=1e3 * floor_seconds(pair, policy.rows),
        level_vs_headless=cost.level / level_seconds(pair, DraftRows(0)),
        draft_vs_full=cost.draft / draft_seconds(pair, full_rows(pair)),
        tokens_per_second=rate and pair.setting.batch_size * rate,
        speedup_vs_autoregressive=rate and rate * plain_seconds(pair),
        speedup_vs_full=rate / full_rate if rate and full_rate else None,
        floor_speedup=length and _floor_speedup(pair, policy, length.tokens),
    )
