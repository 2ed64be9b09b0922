"""A limit on the whole run: what no longer fits is named as skipped, never left out silently."""

from __future__ import annotations

import time


class Deadline:
    """`limit_s` seconds from now on."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._began = time.monotonic()

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self._began

    def refusal(self, needed_s: float) -> str | None:
        """Why a part that takes about `needed_s` is not started; None if it is."""
        left_s = self.limit_s - self.spent_s
        if left_s >= needed_s:
            return None
        return f"needs about {needed_s:.0f} s, {max(left_s, 0):.0f} s of {self.limit_s:.0f} s left"
