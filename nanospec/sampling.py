"""The target's own choice at one position: logits -> distribution -> the token that a uniform number picks.

Autoregressive decoding and the walk over a draft tree both call `pick_next`: the same number picks the same token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Top-p on a CPU looks at so many candidates before it sorts the whole vocabulary (131,072 ids: 0.7, 2 and 8.5 ms).
TOP_P_CANDIDATES = (1024, 16384)
HOST_DEVICE = "cpu"
ACCEPTANCES = ("exact", "typical")


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is picked from the target's logits. The defaults are greedy.

    temperature         0 picks the highest logit; otherwise logits are divided by it
    top_k               keep the k most probable ids; 0: all
    top_p               keep the most probable ids until their mass reaches top_p; 1: all
    min_p               keep ids at least min_p times as probable as the most probable one; 0: all
    repetition_penalty  > 1 makes ids that already occurred less likely; 1: off
    seed                of the uniform numbers; None: fresh entropy
    acceptance          "exact": the output is the target's own. "typical": LOSSY, drafted tokens are kept that are
                        likely enough for the target (see `typical_acceptance`); at a temperature above 0 only
    posterior_threshold, posterior_alpha   epsilon and delta of the typical rule: smaller ones keep more

    Raises TypeError for a wrong type, ValueError for a value out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    acceptance: str = "exact"
    posterior_threshold: float = 0.09
    posterior_alpha: float = 0.3

    def __post_init__(self) -> None:
        for name in (
            "temperature", "top_p", "min_p", "repetition_penalty", "posterior_threshold", "posterior_alpha",
        ):  # fmt: skip
            _require_number(name, getattr(self, name))
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        require_int("top_k", self.top_k)
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0 (0 keeps every id), got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be between 0 and 1, got {self.min_p}")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty must be above 0, got {self.repetition_penalty}")
        if self.seed is not None:
            require_int("seed", self.seed)
            if not -(2**63) <= self.seed < 2**64:
                raise ValueError(f"seed must fit in 64 bits, got {self.seed}")
        self._check_acceptance()

    def _check_acceptance(self) -> None:
        if self.acceptance not in ACCEPTANCES:
            raise ValueError(f"acceptance must be one of {', '.join(ACCEPTANCES)}, got {self.acceptance!r}")
        if not self.is_lossless and self.is_greedy:
            raise ValueError(
                f"temperature must be above 0 with acceptance {self.acceptance!r}, got {self.temperature}: "
                "at 0 the target leaves one token, and there is nothing to accept beside it"
            )
        for name in ("posterior_threshold", "posterior_alpha"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    @property
    def is_lossless(self) -> bool:
        """Whether the output is the target's own, whatever is drafted."""
        return self.acceptance == "exact"

    @property
    def needs_full_logits(self) -> bool:
        """Whether the verifier needs every node's logits; otherwise the best id per node says it all."""
        return not self.is_greedy or self.repetition_penalty != 1


def _require_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")


def require_int(name: str, value: object) -> None:
    """TypeError unless `value` is an int; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")


def is_free_to_read(tensor: Tensor) -> bool:
    """Whether the host may look at values: on a device the queue would stall."""
    return tensor.device.type == HOST_DEVICE


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Repetition penalty of CTRL (arXiv:1909.05858, section 4.1) with the sign rule of transformers.

    logits [.., V], seen bool [.., V]: a seen id's logit is divided by `penalty` if positive, else multiplied by it.
    """
    penalized = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, penalized, logits)


def target_distribution(logits: Tensor, params: SamplingParams) -> Tensor:
    """float64 probabilities, shaped like logits [V] or [n, V]: temperature, top-k, top-p, min-p, softmax.

    Their order and kept sets are those of transformers' logits warpers, but of exactly equal logits at a cut the
    smaller ids are kept. At temperature 0 all mass lies on the highest logit. The penalty comes before: `penalize`.
    Raises ValueError if logits are neither 1-D nor 2-D.
    """
    if logits.dim() not in (1, 2):
        raise ValueError(f"logits must be [V] or [n, V], got shape {tuple(logits.shape)}")
    if logits.dim() == 1:
        return target_distribution(logits[None], params)[0]
    if params.is_greedy:
        best = logits.argmax(-1, keepdim=True)
        return torch.zeros(logits.shape, dtype=torch.float64, device=logits.device).scatter_(1, best, 1.0)
    scores = logits.double()
    # Differences to the maximum, so that a tiny temperature cannot overflow.
    scores = (scores - scores.amax(-1, keepdim=True)).div_(params.temperature)
    if 0 < params.top_k < scores.shape[-1]:
        kth = scores.topk(params.top_k).values[:, -1:]
        scores.masked_fill_(~_is_among_largest(scores, kth, params.top_k), -math.inf)
    probabilities = scores.softmax(-1)
    if params.top_p < 1:
        probabilities.mul_(_is_in_nucleus(probabilities, params.top_p))
    if params.min_p > 0:
        probabilities.mul_(probabilities >= params.min_p * probabilities.amax(-1, keepdim=True))
    if params.top_p == 1 and params.min_p == 0:
        return probabilities
    # The cumulative sum and not sum(): its rounding does not depend on how many rows there are.
    return probabilities.div_(probabilities.cumsum(-1)[:, -1:])


def _is_in_nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """bool [n, V]: an id is kept iff the mass of all more probable ids is below top_p."""
    top, mass = _descending(probabilities, top_p)
    num_kept = 1 + (mass[:, :-1] < top_p).sum(-1, keepdim=True)
    return _is_among_largest(probabilities, top.gather(-1, num_kept - 1), num_kept)


def _descending(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The largest probabilities, enough to carry top_p, in descending order, and their cumulative sum; both [n, m]."""
    shortcuts = TOP_P_CANDIDATES if is_free_to_read(probabilities) else ()
    for count in shortcuts:
        if count < probabilities.shape[-1]:
            top = probabilities.topk(count).values
            mass = top.cumsum(-1)
            if bool((mass[:, -1] >= top_p).all()):
                return top, mass
    top = probabilities.sort(descending=True).values
    return top, top.cumsum(-1)


def _is_among_largest(values: Tensor, threshold: Tensor, count: Tensor | int) -> Tensor:
    """bool [n, V]: the `count` largest values, the last being `threshold` [n, 1]; of equal values the first ids."""
    above, equal = values > threshold, values == threshold
    return above | (equal & (equal.cumsum(-1) <= count - above.sum(-1, keepdim=True)))


def uniforms(params: SamplingParams, count: int, device: torch.device | str) -> Tensor:
    """float64 [count] in [0, 1): number t picks the token at generated position t.

    Drawn on the CPU: every device gets the same numbers, and a longer draw of the same seed begins with a shorter one.
    """
    generator = torch.Generator()
    if params.seed is None:
        generator.seed()
    else:
        generator.manual_seed(params.seed)
    return torch.rand(count, generator=generator, dtype=torch.float64).to(device)


def choose(probabilities: Tensor, u: Tensor) -> Tensor:
    """Inverse CDF: per row the smallest id whose cumulative probability exceeds u, never an id of probability 0.

    probabilities float64 [n, V], u float64 [n]; returns int64 [n]. A u beyond the (rounded) end of the sum picks the
    last possible id. Example: probabilities [0.0, 0.5, 0.0, 0.5] give id 1 for u < 0.5 and id 3 from 0.5 on.
    """
    # A parallel cumulative sum need not be monotone in its last bit: impossible ids are ruled out by name.
    cumulative = probabilities.cumsum(-1).where(probabilities > 0, 0.0)
    highest = cumulative.amax(-1)
    below_highest = torch.nextafter(highest, torch.zeros_like(highest))
    exceeds = cumulative > torch.minimum(u, below_highest)[:, None]
    return exceeds.to(torch.uint8).argmax(-1)


def pick_next(logits: Tensor, params: SamplingParams, u: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
    """The target's own next token: int64 [n] from logits [n, V], u float64 [n], seen bool [n, V].

    Repetition penalty over `seen`, then argmax at temperature 0, else `choose` from `target_distribution`.
    Raises ValueError if u or seen is missing where params need it.
    """
    if params.repetition_penalty != 1:
        if seen is None:
            raise ValueError("seen must be bool [n, V] with a repetition_penalty other than 1, got None")
        logits = penalize(logits.double(), seen, params.repetition_penalty)
    if params.is_greedy:
        return logits.argmax(-1)
    if u is None:
        raise ValueError("u must be float64 [n] with a temperature above 0, got None")
    return choose(target_distribution(logits, params), u)
