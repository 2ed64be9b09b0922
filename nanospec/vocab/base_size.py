"""How many of the most frequent ids a hybrid vocabulary holds beside the context: as many as pay for their rows."""

from __future__ import annotations

BLOCK_IDS = 256  # ids that come and go together
MOST_BLOCKS = 8
# Tokens per step that the context lacks and block i of the frequency list has, in the first 32 tokens of a response, as
# `nanospec.training.measure_lack` finds for the embedded pair, smoothed, for steps of TYPICAL_ACCEPT_LENGTH tokens.
TYPICAL_LACK = (0.17, 0.055, 0.05, 0.03, 0.025, 0.018, 0.015, 0.012)
TOKENS_PER_LACK = 1.0  # by which a step's tokens rise if such a token can be drafted
TYPICAL_ACCEPT_LENGTH = 4.5
TRUST = 1.0  # what is typical counts as much as so many lacking tokens seen
HALF_LIFE = 32  # steps after which what was seen counts half
INTERVAL = 4  # steps between two changes
HYSTERESIS = 0.25  # a block must be worth so much more than it costs to come, so much less to go


class BaseSize:
    """Chooses a number of blocks between 0 and `most_blocks`, one block at a time; plain numbers, no clock, no chance.

    With a tokens per step and a step as the unit of time, speed is a / 1. A block that brings g tokens and costs c of a
    step is worth it if (a + g) / (1 + c) > a / 1, that is g > c a. What block i brings is

        g_i = TOKENS_PER_LACK · TYPICAL_LACK[i] · (lack + TRUST) / (typical lack + TRUST)

    where lack is the number of tokens seen that the context lacked, of any block, whether it was held or not: what this
    text needs is known for blocks that it does not have. Older steps count less.

    row_cost: what one row costs, as a share of a step. Raises ValueError if it is negative or not finite.
    """

    def __init__(self, most_blocks: int, row_cost: float, block_ids: int = BLOCK_IDS) -> None:
        if not 0 <= row_cost < float("inf"):
            raise ValueError(f"row_cost must be at least 0 and finite, got {row_cost}")
        self.most_blocks, self.block_cost = min(most_blocks, MOST_BLOCKS), row_cost * block_ids
        self._lack = self._steps = self._tokens = 0.0
        self._until_change = INTERVAL
        self.num_blocks = self._wanted(margin=0.0)

    def observe(self, num_lacking: int, num_tokens: int) -> int:
        """See a step: its tokens, and how many of them the context lacked. Returns the blocks from now on."""
        fade = 0.5 ** (1 / HALF_LIFE)
        self._lack = self._lack * fade + num_lacking
        self._tokens = self._tokens * fade + num_tokens
        self._steps = self._steps * fade + 1
        self._until_change -= 1
        if self._until_change <= 0:
            more, fewer = self._wanted(HYSTERESIS), self._wanted(-HYSTERESIS)
            change = 1 if more > self.num_blocks else -1 if fewer < self.num_blocks else 0
            self.num_blocks += change
            self._until_change = INTERVAL if change else 1
        return self.num_blocks

    def _wanted(self, margin: float) -> int:
        """Leading blocks that bring more than (1 + margin) times what they cost."""
        typical = self._steps * sum(TYPICAL_LACK[: self.most_blocks])
        scale = TOKENS_PER_LACK * (self._lack + TRUST) / (typical + TRUST)
        # One step of typical length beside those seen: nothing is divided by zero.
        accept_length = (self._tokens + TYPICAL_ACCEPT_LENGTH) / (self._steps + 1)
        least = (1 + margin) * self.block_cost * accept_length
        worth = [scale * lack > least for lack in TYPICAL_LACK[: self.most_blocks]]
        return worth.index(False) if False in worth else len(worth)
