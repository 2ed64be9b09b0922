"""Where the ids of a context-dependent draft vocabulary come from: sources, which propose ids after every target pass.

A vocabulary is a least-recently-used set over what its sources propose. A source of one's own is one method:

    class Neighbours:
        def candidates(self, observation):
            return torch.cat((observation.token_ids + 1, observation.token_ids), 1)

    InContextVocab(head_weight, sources=(TargetSuggestions(), Neighbours(), TextTokens()))
"""

from __future__ import annotations

from collections.abc import Sequence
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
        """int64 [B, m], the ids to keep longest last; what is no id of the vocabulary counts as none."""


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


def gather_candidates(sources: Sequence[CandidateSource], observation: Observation) -> Tensor:
    """One update of a tracker, int64 [B, m]: what a later source proposes outlives what an earlier one does."""
    return torch.cat([source.candidates(observation) for source in sources], 1)


def reset_sources(sources: Sequence[CandidateSource], rows: Tensor | None) -> None:
    """Those that have memory forget all sequences, or those in `rows`."""
    for source in sources:
        forget = getattr(source, "reset", None)
        if forget is not None:
            forget(rows)
