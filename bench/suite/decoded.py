"""One prompt decoded by one row: what was said, how long it took, and where the time went."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

STAGES = ("draft", "verify", "vocabulary", "other")


class Decoded(NamedTuple):
    """Figures of one prompt; seconds are wall time from the call to its return.

    token_ids    what was generated, without the prompt
    seconds      of all; ttft: until the first tokens were there; first_tokens: how many those were
    steps        target passes after the first tokens; step_tokens: what they yielded
    active_rows  ids that the drafter scored, summed over the steps; None: nobody drafted, or nobody counted
    stages       seconds after the first tokens by STAGES; None: nobody sees inside
    """

    token_ids: list[int]
    seconds: float
    ttft: float
    first_tokens: int
    steps: int
    step_tokens: int
    active_rows: int | None = None
    stages: dict[str, float] | None = None

    @property
    def decode_seconds(self) -> float:
        return self.seconds - self.ttft

    @property
    def tokens_per_second(self) -> float:
        """Tokens behind the first ones over the seconds behind them; nan where all came at once."""
        num_behind = len(self.token_ids) - self.first_tokens
        return num_behind / self.decode_seconds if num_behind > 0 else float("nan")

    @property
    def end_to_end_tokens_per_second(self) -> float:
        return len(self.token_ids) / self.seconds


Decode = Callable[[Tensor, int], Decoded]  # input_ids int64 [1, P], max_new_tokens; end-of-sequence ids do not end it


def from_record(record: dict[str, Any]) -> Decoded:
    """As a state file keeps it."""
    return Decoded(**{name: record[name] for name in Decoded._fields})
