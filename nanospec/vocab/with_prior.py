"""Any draft vocabulary together with a prior on its scores: what followed a token earlier in the text is likelier."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from torch import Tensor, nn

from nanospec.draft_vocabulary import HasVocabularyViews, VocabularyViews
from nanospec.records import DraftVocab, Observation
from nanospec.successor_prior import SuccessorPrior
from nanospec.vocab.batching import copy_sequence, for_batch, sequences

if TYPE_CHECKING:
    from nanospec.vocab_selector import VocabSelector


class PriorVocab(nn.Module):
    """`policy` chooses the ids, `prior` leans on their scores; see `SuccessorPrior`.

    Raises TypeError for a policy that cannot say where an id stands (`columns`).
    """

    observes: bool = True

    def __init__(self, policy: VocabSelector, prior: SuccessorPrior) -> None:
        super().__init__()
        if not hasattr(policy, "columns"):
            raise TypeError(f"vocab must have columns() with a prior, got {type(policy).__name__}, which has none")
        self.policy, self.prior = policy, prior
        self.name = f"{policy.name}+prior"

    def reset(self, rows: Tensor | None = None) -> None:
        """As the policy's."""
        self.policy.reset(rows)
        self.prior.reset(rows)

    def for_batch(self, batch_size: int) -> PriorVocab:
        """The same, empty, for so many sequences. Raises as the policy does, TypeError if it serves no batches."""
        return PriorVocab(for_batch(self.policy, batch_size), self.prior.for_batch(batch_size))

    def sequences(self, start: int, stop: int) -> PriorVocab:
        """Policy and prior of these sequences alone, in the same memory."""
        other, policy = copy.copy(self), sequences(self.policy, start, stop)
        other._modules = dict(self._modules)
        other.policy, other.prior = policy, self.prior.sequences(start, stop)
        return other

    def copy_sequence(self, source: int, destination: int) -> None:
        """Sequence `destination` becomes what `source` is."""
        copy_sequence(self.policy, source, destination)
        self.prior.copy_sequence(source, destination)

    def learn(self, observation: Observation) -> None:
        """As the policy's, and what comes after tokens."""
        self.policy.learn(observation)
        self.prior.observe(*observation)

    def select(self, width: int | None = None) -> DraftVocab:
        """As the policy's, with the prior."""
        return self.policy.select(width).changed(lambda vocab: vocab._replace(raise_scores=self.raise_scores))

    def raise_scores(self, logits: Tensor, token_ids: Tensor) -> Tensor:
        """logits [B, n, K] after tokens int64 [B, n] -> the same with the bonus of their successors."""
        ids, bonus = self.prior.bonus(token_ids)
        return self.prior.add_to(logits, self.columns(ids), bonus)

    def columns(self, ids: Tensor) -> Tensor:
        return self.policy.columns(ids)

    def vocabulary_views(self) -> VocabularyViews:
        """The policy's buffers. Raises TypeError if it has none."""
        if not isinstance(self.policy, HasVocabularyViews):
            raise TypeError(f"vocab must have vocabulary_views(), got {type(self.policy).__name__}, which has none")
        return self.policy.vocabulary_views()
