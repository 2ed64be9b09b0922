"""Where two greedy decodings part: did rounding choose between two near-equal logits, or are the tokens wrong?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from nanospec.result import Candidates

EXACT_DTYPES = (torch.float32, torch.float64)
MAX_SHIFT_ULPS = 2  # one for storing the logit, one for the roundings of the hidden state that it is computed from


def first_difference(tokens: Sequence[int], reference: Sequence[int]) -> int | None:
    """First position at which the sequences differ, None if they are equal.

    The end of a sequence counts as a token: [1, 2] and [1, 2, 3] differ at position 2.
    """
    for position, (token, expected) in enumerate(zip(tokens, reference, strict=False)):
        if token != expected:
            return position
    return None if len(tokens) == len(reference) else min(len(tokens), len(reference))


def margin_below_top(token_id: int, candidates: Candidates) -> float | None:
    """Top logit less that of `token_id`, None if it is not among the candidates."""
    if token_id not in candidates.ids:
        return None
    return candidates.logits[0] - candidates.logits[candidates.ids.index(token_id)]


def near_tie_bound(dtype: torch.dtype, scale: float) -> float:
    """Margin below which rounding alone may put a token in the place of the best; `scale` is the top logit.

    A matrix product over one row and one over sixteen rows may add in another order, so that the same logit comes out
    up to `MAX_SHIFT_ULPS` units in the last place apart. A unit in the last place of m is at most eps(dtype) * |m|.
    The order of two logits flips only if their margin is less than what both may move together:

        bound = 2 * MAX_SHIFT_ULPS * eps(dtype) * |top logit|        (bfloat16, logit 16: 0.5; float16: 0.0625)

    In float32 and float64 the bound is 0: there every token must match.
    """
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating point type, got {dtype}")
    if dtype in EXACT_DTYPES:
        return 0.0
    return 2 * MAX_SHIFT_ULPS * torch.finfo(dtype).eps * abs(scale)


def is_near_tie(margin: float, top_logit: float, dtype: torch.dtype) -> bool:
    """Whether a token whose logit lies `margin` under a top logit of `top_logit` is below the bound of `dtype`."""
    return margin < near_tie_bound(dtype, top_logit)
