"""The requests of a soak, made from a seed: any one of them, and any round, can be made again alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

WAYS = ("batch", "batch", "batch", "generate", "stream")
FEWEST_IN_ROUND = 4
# Sampled ones keep few ids: there are as many gaps of rounding size, in which float32 parts tokens, as ids are kept.
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"repetition_penalty": 1.3},
    {"temperature": 0.8, "top_k": 20},
    {"temperature": 1.1, "top_k": 50, "top_p": 0.8},
    {"temperature": 0.7, "top_k": 50, "min_p": 0.05, "repetition_penalty": 1.2},
)
STOP_STRINGS = ("e", "an", ". ", "\n", " the ")


class Plan(NamedTuple):
    """One request, and what becomes of it.

    number        among all requests, from 0
    settings      of `SpeculativeDecoder.generate`
    way           "batch", "generate" or "stream"; in a round of `generate_many` all go the same way
    leaves_after  pieces after which it is cancelled or its stream closed; None: it runs to its end. 0: cancelled before
                  the engine has looked at it
    num_steps     steps of the engine before the next request comes
    """

    number: int
    input_ids: list[int]
    settings: dict[str, Any]
    way: str
    leaves_after: int | None
    num_steps: int


class Round(NamedTuple):
    """What goes through one engine, and beside it through its decoder.

    is_many     `generate_many` reads the requests, instead of `submit`
    ends_after  results (many) or plans after which the engine is closed with requests in it; None: it is drained
    """

    number: int
    policy: str
    max_batch: int
    is_many: bool
    ends_after: int | None
    plans: list[Plan]


@dataclass(frozen=True)
class Mix:
    """What requests are drawn from.

    token_ids                 text that prompts are cut from; one in five has ids of no text instead
    most_prompt, most_output  tokens; lengths are uniform in their logarithm, so that short ones are frequent
    most_in_round             requests; at least 4
    """

    seed: int
    token_ids: Sequence[int]
    vocab_size: int
    policies: tuple[str, ...]
    most_batch: int
    most_prompt: int
    most_output: int
    most_in_round: int = 24

    def rounds(self, num_requests: int) -> Iterator[Round]:
        """Rounds of so many requests together."""
        number = first = 0
        while first < num_requests:
            made = self._round(number, first, num_requests - first)
            yield made
            number, first = number + 1, first + len(made.plans)

    def as_json(self) -> dict[str, Any]:
        """All of it but the text."""
        return {name: value for name, value in vars(self).items() if name != "token_ids"}

    def longest(self) -> Plan:
        """No request needs more memory."""
        prompt = [self.token_ids[place % len(self.token_ids)] for place in range(self.most_prompt)]
        return Plan(-1, prompt, {"max_new_tokens": self.most_output, "ignore_eos": True}, "generate", None, 0)

    def _round(self, number: int, first: int, most: int) -> Round:
        draw = random.Random(f"round {number} of {self.seed}")
        num_plans = min(draw.randint(FEWEST_IN_ROUND, self.most_in_round), most)
        policy = draw.choice(self.policies)
        ends_after = draw.randint(1, num_plans) if draw.random() < 0.2 else None
        plans = [self._plan(place) for place in range(first, first + num_plans)]
        return Round(number, policy, draw.randint(1, self.most_batch), draw.random() < 0.25, ends_after, plans)

    def _plan(self, number: int) -> Plan:
        draw = random.Random(f"request {number} of {self.seed}")
        settings: dict[str, Any] = {"max_new_tokens": _length(draw, self.most_output), **draw.choice(SAMPLINGS)}
        if settings.get("temperature"):
            settings["seed"] = draw.randrange(2**31)
        if draw.random() < 0.5:
            settings["ignore_eos"] = True
        if draw.random() < 0.3:
            settings["stop_strings"] = draw.sample(STOP_STRINGS, draw.randint(1, 2))
        leaves_after = _length(draw, 5) - 1 if draw.random() < 0.15 else None
        return Plan(number, self._prompt(draw), settings, draw.choice(WAYS), leaves_after, draw.choice((0, 0, 1, 2)))

    def _prompt(self, draw: random.Random) -> list[int]:
        length = _length(draw, self.most_prompt)
        if draw.random() < 0.2:
            return [draw.randrange(self.vocab_size) for _ in range(length)]
        start = draw.randrange(len(self.token_ids))
        return [self.token_ids[(start + place) % len(self.token_ids)] for place in range(length)]


def _length(draw: random.Random, most: int) -> int:
    """1 to `most`, each doubling as likely as the next."""
    return min(most, int((most + 1) ** draw.random()))
