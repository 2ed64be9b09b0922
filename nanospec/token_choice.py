"""The target's own choice of the next token from one row of logits, and the error for logits that allow none."""

from __future__ import annotations

from torch import Tensor

from nanospec.ops.blocked_topk import blocked_argmax
from nanospec.sampling import SamplingParams, pick_next


class NonFiniteLogitsError(ValueError):
    """The target produced NaN or +inf logits after a position of the sequence."""

    def __init__(self, position: int) -> None:
        super().__init__(f"target logits must be finite, got NaN or infinity after position {position}")
        self.position = position


def choose_next(logits: Tensor, sampling: SamplingParams, u: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """logits [1, V], u float64 [1], seen bool [1, V] or None -> id int64 [1] and the largest logit [1].

    The rule is the one that the verifier applies at every node of a tree.
    """
    largest, best_id = blocked_argmax(logits)
    if sampling.needs_full_logits:
        return pick_next(logits, sampling, u, seen), largest
    return best_id, largest


def check_finite_logits(largest: float, position: int) -> None:
    """NonFiniteLogitsError if the largest logit after `position` is NaN or +inf (or -inf: nothing can be chosen)."""
    if not abs(largest) < float("inf"):
        raise NonFiniteLogitsError(position)
