"""Totals over prompts and the ratios between them: one row of the comparison per vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from nanospec.cli.measure import AUTOREGRESSIVE, Difference

if TYPE_CHECKING:
    from nanospec.result import GenerationResult

FULL = "full"


@dataclass(frozen=True)
class Row:
    """One vocabulary over all prompts. None: not defined for this row, or nothing to compare with.

    tokens_per_second   new tokens over seconds, both without prefill and the first token, which prefill yields
    mean_accept_length  tokens that a target pass of the decoding yields, bonus token included
    mean_active_vocab   rows of the head that a draft step read
    draft_vs_headless   draft time over that of the same steps with the head deleted, from runs of their own
    vocabulary_share    upkeep of the vocabulary over all seconds except prefill
    end_to_end_...      the same rate and speed-up over all new tokens and all seconds, prefill included
    identical           no greedy token differs from autoregressive decoding, near-ties aside
    near_ties           prompts whose first difference is a near-tie
    new_tokens          over all prompts; new_tokens_per_prompt: their mean
    seconds             by stage, over all prompts
    """

    vocab: str
    tokens_per_second: float | None
    speedup_vs_autoregressive: float | None
    speedup_vs_full: float | None
    mean_accept_length: float | None
    accept_vs_full: float | None
    mean_active_vocab: float | None
    draft_ms_per_step: float | None
    draft_vs_full: float | None
    draft_vs_headless: float | None
    vocabulary_share: float | None
    prefill_ms_per_prompt: float | None
    end_to_end_tokens_per_second: float | None
    end_to_end_vs_autoregressive: float | None
    identical: bool
    near_ties: int
    new_tokens: int
    new_tokens_per_prompt: float | None
    target_passes: int
    seconds: dict[str, float]


class Totals(NamedTuple):
    """Sums over the prompts of one row. `decoded_tokens`: new tokens but the first of each, which prefill yields."""

    prompts: int
    new_tokens: int
    decoded_tokens: int
    target_passes: int
    steps: int
    step_tokens: int
    active_rows: int
    decode_seconds: float
    seconds: dict[str, float]

    @property
    def tokens_per_second(self) -> float | None:
        return ratio(self.decoded_tokens, self.decode_seconds)

    @property
    def end_to_end_tokens_per_second(self) -> float | None:
        return ratio(self.new_tokens, sum(self.seconds.values()))

    @property
    def accept_length(self) -> float | None:
        return ratio(self.step_tokens, self.steps)

    @property
    def draft_ms(self) -> float | None:
        """None where steps were captured whole: nobody sees inside."""
        return None if self.seconds["step"] else ratio(1000 * self.seconds["draft"], self.steps)

    @property
    def vocabulary_share(self) -> float | None:
        return None if self.seconds["step"] else ratio(self.seconds["vocabulary"], self.decode_seconds)


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """Their quotient, None where either is missing or the denominator is 0."""
    return numerator / denominator if numerator is not None and denominator else None


def sum_up(results: Sequence[GenerationResult]) -> Totals:
    """Totals of one row."""
    from nanospec.stats import STAGES  # loads torch, which --help can do without

    stats = [result.stats for result in results]
    return Totals(
        prompts=len(stats),
        new_tokens=sum(s.new_tokens for s in stats),
        decoded_tokens=sum(max(s.new_tokens - 1, 0) for s in stats),
        target_passes=sum(s.target_passes for s in stats),
        steps=sum(s.steps for s in stats),
        step_tokens=sum(s.step_tokens for s in stats),
        active_rows=sum(s.active_rows for s in stats),
        decode_seconds=sum(s.decode_seconds for s in stats),
        seconds={stage: sum(s.seconds[stage] for s in stats) for stage in STAGES},
    )


def build_rows(
    results: Mapping[str, Sequence[GenerationResult]],
    headless: Mapping[str, float | None],
    differences: Sequence[Difference],
) -> list[Row]:
    """One row per entry of `results`, in its order; `results` must have autoregressive decoding, may have full."""
    totals = {name: sum_up(runs) for name, runs in results.items()}
    return [_build_row(name, totals, headless, [d for d in differences if d.vocab == name]) for name in totals]


def _build_row(
    name: str, totals: Mapping[str, Totals], headless: Mapping[str, float | None], differences: Sequence[Difference]
) -> Row:
    own, plain, full = totals[name], totals[AUTOREGRESSIVE], totals.get(FULL)
    drafts = name != AUTOREGRESSIVE
    accept_length = own.accept_length if drafts else 1.0  # one token per pass is what autoregressive means
    return Row(
        vocab=name,
        tokens_per_second=own.tokens_per_second,
        speedup_vs_autoregressive=ratio(own.tokens_per_second, plain.tokens_per_second),
        speedup_vs_full=ratio(own.tokens_per_second, full and full.tokens_per_second),
        mean_accept_length=accept_length,
        accept_vs_full=ratio(accept_length, full and full.accept_length),
        mean_active_vocab=ratio(own.active_rows, own.steps) if drafts else None,
        draft_ms_per_step=own.draft_ms if drafts else None,
        draft_vs_full=ratio(own.draft_ms, full and full.draft_ms) if drafts else None,
        draft_vs_headless=headless.get(name),
        vocabulary_share=own.vocabulary_share if drafts else None,
        prefill_ms_per_prompt=ratio(1000 * own.seconds["prefill"], own.prompts),
        end_to_end_tokens_per_second=own.end_to_end_tokens_per_second,
        end_to_end_vs_autoregressive=ratio(own.end_to_end_tokens_per_second, plain.end_to_end_tokens_per_second),
        identical=all(difference.near_tie for difference in differences),
        near_ties=sum(difference.near_tie for difference in differences),
        new_tokens=own.new_tokens,
        new_tokens_per_prompt=ratio(own.new_tokens, own.prompts),
        target_passes=own.target_passes,
        seconds=own.seconds,
    )
