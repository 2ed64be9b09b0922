"""Where the ids of a context-dependent draft vocabulary come from: sources, which propose ids after every target pass.

A vocabulary is a least-recently-used set over what its sources propose. A source of one's own is one method:

    class Neighbours:
        def candidates(self, observation):
            return torch.cat((observation.token_ids + 1, observation.token_ids), 1)

    InContextVocab(head_weight, sources=(TargetSuggestions(), Neighbours(), TextTokens()))
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from nanospec.records import Observation


class CandidateSource(Protocol):
    """Proposes ids for the draft vocabulary.

    A source with memory also has `reset(rows)`, as `VocabSelector`. Inside a captured decoding step it may not wait for
    the device, and the number of its candidates depends on the observation's shape alone.
    """

    def candidates(self, observation: Observation) -> Tensor:
        """int64 [B, m] on the observation's device, any m, 0 too; the ids to keep longest last. -1 means none; ids
        outside the vocabulary are dropped."""


class TextTokens:
    """The tokens themselves: the prompt's, and all that was drafted, whether it was accepted or not."""

    def candidates(self, observation: Observation) -> Tensor:
        return observation.token_ids


class TargetSuggestions:
    """The target's best ids after every token; the first choices of all positions outlive all second choices."""

    def candidates(self, observation: Observation) -> Tensor:
        return observation.top_ids.flip(-1).mT.flatten(1)


# NanoSpec's two. Text counts as seen last: when room is short, unlikely suggestions go first.
IN_CONTEXT_SOURCES: tuple[CandidateSource, ...] = (TargetSuggestions(), TextTokens())


def checked_sources(sources: Iterable[CandidateSource]) -> tuple[CandidateSource, ...]:
    """Raises ValueError for no source; TypeError for a source alone, an object without `candidates` or a class."""
    if not isinstance(sources, Iterable):
        raise TypeError(f"sources must be a tuple of CandidateSources, got {type(sources).__name__}")
    sources = tuple(sources)
    if not sources:
        raise ValueError("sources must hold at least one CandidateSource, got none")
    for source in sources:
        if isinstance(source, type):
            raise TypeError(f"sources must hold objects, got the class {source.__name__}")
        if not callable(getattr(source, "candidates", None)):
            raise TypeError(f"sources must hold objects with candidates(observation), got {type(source).__name__}")
    return sources


def gather_candidates(sources: Sequence[CandidateSource], observation: Observation) -> Tensor:
    """One update of a tracker, int64 [B, m]: what a later source proposes outlives what an earlier one does.

    Raises TypeError or ValueError naming the source that returns anything but integers [B, m].
    """
    return torch.cat([_candidates_of(source, observation) for source in sources], 1)


def _candidates_of(source: CandidateSource, observation: Observation) -> Tensor:
    ids, num_sequences = source.candidates(observation), observation.token_ids.shape[0]
    must = f"candidates of {type(source).__name__} must be int64 [B, m] with B = {num_sequences}"
    if not isinstance(ids, Tensor):
        raise TypeError(f"{must}, got {type(ids).__name__}")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"{must}, got {ids.dtype} of shape {tuple(ids.shape)}")
    if ids.dim() != 2 or ids.shape[0] != num_sequences:
        raise ValueError(f"{must}, got shape {tuple(ids.shape)}")
    return ids


def reset_sources(sources: Sequence[CandidateSource], rows: Tensor | None) -> None:
    """Those that have memory forget all sequences, or those in `rows`."""
    for source in sources:
        forget = getattr(source, "reset", None)
        if forget is not None:
            forget(rows)
