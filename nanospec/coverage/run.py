"""All policies over all documents: the loop of a measurement, which may be resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from nanospec.coverage.documents import Document, TextDocument, as_tokens, draw_cuts
from nanospec.coverage.measure import ContextMeasurement, Timer, measure_context
from nanospec.coverage.policy import PolicyProbe
from nanospec.coverage.shared_pass import shared_contexts
from nanospec.coverage.state_file import StateFile
from nanospec.sampling import SamplingParams

if TYPE_CHECKING:
    from nanospec.decode import SpeculativeDecoder

TIMED_EVERY = 4  # documents, of which one context is timed
SEED_STRIDE = 1_000_003  # between documents: further than any context is long


class RunSettings(NamedTuple):
    """num_cuts contexts per document; is_sampled: the target goes on at temperature 1, not greedily; max_new_tokens of
    a response that the target generates; seed of all that is drawn."""

    num_cuts: int = 1
    is_sampled: bool = False
    max_new_tokens: int = 128
    seed: int = 0


def measure_documents(
    decoder: SpeculativeDecoder,
    probes: Sequence[PolicyProbe],
    documents: Sequence[TextDocument],
    settings: RunSettings,
    state: StateFile,
    advance: Callable[[], None],
) -> list[dict[str, Any]]:
    """Records of all documents, in their order, those in `state` not measured again.

    A record: document (its number), task, contexts [{position, verify_ms, policies [Measurement fields]}]; contexts is
    None for a prompt too long for the target.
    """
    for number, text in enumerate(documents):
        if number not in state.records:
            document = as_tokens(decoder, text, settings.max_new_tokens, settings.seed + number)
            contexts = None if document is None else _measure(decoder, probes, document, number, settings)
            state.add({"document": number, "task": text.task, "contexts": contexts})
        advance()
    return [state.records[number] for number in range(len(documents))]


def measure_cuts(
    decoder: SpeculativeDecoder,
    probes: Sequence[PolicyProbe],
    token_ids: torch.Tensor,
    cuts: Sequence[int],
    sampling: SamplingParams,
    timer: Timer | None = None,
) -> dict[int, ContextMeasurement]:
    """Every policy behind every cut of a text int64 [1, n]; the first of them, the longest, timed."""
    target, drafter, tree = decoder.target, decoder.drafter, decoder.tree
    num_top = max(probe.num_top for probe in probes)
    measured: dict[int, ContextMeasurement] = {}
    for cut, context in shared_contexts(target, token_ids, cuts, tree, num_top, sampling):
        measured[cut] = measure_context(target, drafter, context, tree, probes, None if measured else timer)
    return measured


def _measure(
    decoder: SpeculativeDecoder,
    probes: Sequence[PolicyProbe],
    document: Document,
    number: int,
    settings: RunSettings,
) -> list[dict[str, Any]]:
    seed = settings.seed + number * SEED_STRIDE
    sampling = SamplingParams(temperature=1.0, seed=seed) if settings.is_sampled else SamplingParams()
    timer = Timer(decoder.target.device) if number % TIMED_EVERY == 0 else None
    cuts = draw_cuts(document, settings.num_cuts, [settings.seed, number])
    if not cuts:
        return []
    if number == 0:  # the first call of everything is slow, and is not timed
        measure_cuts(decoder, probes, document.token_ids, cuts[-1:], sampling)
    measured = measure_cuts(decoder, probes, document.token_ids, cuts, sampling, timer)
    return [
        {
            "position": cut - document.first,
            "verify_ms": measured[cut].verify_ms,
            "policies": [measurement._asdict() for measurement in measured[cut].policies],
        }
        for cut in cuts
    ]
