"""Any policy inside the vocabulary of a draft that scores only some of the target's ids (EAGLE-3's d2t)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nanospec.draft_vocabulary import HasVocabularyViews, VocabularyViews
from nanospec.records import DraftVocab, Observation
from nanospec.vocab.batching import copy_sequence, for_batch, sequences
from nanospec.vocab.in_context import InContextVocab
from nanospec.vocab.sources import gather_candidates

if TYPE_CHECKING:
    from nanospec.vocab_selector import VocabSelector

LookAhead = Callable[[Tensor, Tensor, int], None]


def head_positions(target_ids: Tensor, vocab_size: int) -> Tensor:
    """int64 [V + 1]: the row of the draft's head that scores each id, -1 where none does; the last entry is -1.

    Example: target_ids [3, 0] and 4 ids give [1, -1, -1, 0, -1].
    """
    positions = torch.full((vocab_size + 1,), -1, device=target_ids.device)
    return positions.scatter_(0, target_ids, torch.arange(target_ids.shape[0], device=target_ids.device))


class ReducedVocab(nn.Module):
    """A `policy` over rows of the draft's head, seen as one over ids of the target.

    What is observed goes in as positions in the head; an id that the draft cannot say takes no place and is counted.
    What is selected comes out as ids of the target, with `head_pos` beside them.

    target_ids  int64 [rows of the head], the id that each row scores
    vocab_size  ids of the target (V)
    listed      for a fixed list: ids that were asked for, and how many of them the draft cannot say
    """

    target_ids: Tensor
    head_pos: Tensor
    draft_ids: Tensor
    counted: Tensor

    def __init__(
        self, policy: VocabSelector, target_ids: Tensor, vocab_size: int, listed: tuple[int, int] = (0, 0)
    ) -> None:
        super().__init__()
        self.policy, self.vocab_size, self.listed = policy, vocab_size, listed
        self.name, self.observes = policy.name, policy.observes
        positions = policy.select(None).draft_ids
        device, target_ids = positions.device, target_ids.to(positions.device)
        buffers = {
            "target_ids": target_ids,
            "head_pos": head_positions(target_ids, vocab_size),
            "draft_ids": target_ids[positions],
            "counted": torch.tensor(listed, device=device).repeat(positions.shape[0], 1),
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    def reset(self, rows: Tensor | None = None) -> None:
        """As the policy's; also starts counting anew."""
        self.policy.reset(rows)
        for place, number in enumerate(self.listed):
            self.counted[slice(None) if rows is None else rows, place] = number
        self._refresh()

    def for_batch(self, batch_size: int) -> ReducedVocab:
        """The same, empty, for so many sequences. Raises as the policy does, TypeError if it serves no batches."""
        policy = for_batch(self.policy, batch_size)
        return ReducedVocab(policy, self.target_ids, self.vocab_size, self.listed)

    def sequences(self, start: int, stop: int) -> ReducedVocab:
        """The policy over these sequences alone, in the same memory."""
        other, policy = copy.copy(self), sequences(self.policy, start, stop)
        per_sequence = {"draft_ids": self.draft_ids[start:stop], "counted": self.counted[start:stop]}
        other._buffers, other._modules = {**self._buffers, **per_sequence}, dict(self._modules)
        other.policy = policy
        return other

    def copy_sequence(self, source: int, destination: int) -> None:
        """Sequence `destination` becomes what `source` is."""
        copy_sequence(self.policy, source, destination)
        for buffer in (self.draft_ids, self.counted):
            buffer[destination] = buffer[source]

    def learn(self, observation: Observation) -> None:
        """As the policy's. Sources see and propose ids of the target; a policy that is no `InContextVocab` gets the
        whole observation as positions in the head, -1 for ids that the draft cannot say."""
        if isinstance(self.policy, InContextVocab):
            self.observe(gather_candidates(self.policy.sources, observation))
        elif self.observes:
            seen, suggested, following = (self._positions(ids) for ids in observation)
            for ids, positions in ((observation.token_ids, seen), (observation.top_ids, suggested)):
                self._count(ids.flatten(1), positions.flatten(1))
            self.policy.learn(Observation(seen, suggested, following))
            self._refresh()

    def observe(self, token_ids: Tensor) -> None:
        """See ids of the target, integers [B, n], oldest first; -1 means "none". Raises TypeError for other dtypes."""
        if token_ids.dtype == torch.bool or token_ids.is_floating_point() or token_ids.is_complex():
            raise TypeError(f"token_ids must be integers, got {token_ids.dtype}")
        positions = self._positions(token_ids)
        self._count(token_ids, positions)
        if isinstance(self.policy, InContextVocab):
            self.policy.observe(positions)
        self._refresh()

    def pin(self, ids: Tensor) -> None:
        """As `InContextVocab.pin`: ids of the target, all of which the draft can say."""
        assert isinstance(self.policy, InContextVocab), "others have no pins"
        self.policy.pin(self.head_pos[ids])
        self._refresh()

    def release(self, ids: Tensor) -> None:
        """As `InContextVocab.release`."""
        assert isinstance(self.policy, InContextVocab), "others have no pins"
        self.policy.release(self.head_pos[ids])
        self._refresh()

    def was_seen(self, ids: Tensor) -> Tensor:
        """ids int64 [B, ..] inside the vocabulary -> bool: was observed, and the draft can say it."""
        assert isinstance(self.policy, InContextVocab), "others do not look"
        positions = self.head_pos[ids]
        return self.policy.was_seen(positions.clamp(min=0)) & (positions >= 0)

    def select(self, width: int | None = None) -> DraftVocab:
        """As the policy's, ids of the target; a view that the next `observe` changes."""
        chosen = self.policy.select(width)
        if chosen.at_level is not None:
            return chosen.changed(self._as_target)._replace(look_ahead=self._over_head(chosen.look_ahead))
        return chosen._replace(draft_ids=self.draft_ids[:, : chosen.draft_ids.shape[1]], head_pos=chosen.draft_ids)

    def columns(self, ids: Tensor) -> Tensor:
        """ids int64 [B, ..] inside the vocabulary -> the column of each, -1 where there is none, now or ever."""
        positions = self.head_pos[ids]
        columns = self.policy.columns(positions.clamp(min=0))  # type: ignore[attr-defined]  # all of ours have it
        return columns.masked_fill(positions < 0, -1)

    def count_unsayable(self) -> tuple[int, int]:
        """Ids observed by all sequences since `reset` (repeated ones each time), and how many the draft cannot say.

        Waits for the device.
        """
        observed, unsayable = self.counted.sum(0).tolist()
        return observed, unsayable

    def vocabulary_views(self) -> VocabularyViews:
        """For the compile backend: over rows of the draft's head, not over ids."""
        if not isinstance(self.policy, HasVocabularyViews):
            raise TypeError(f"vocab must have vocabulary_views(), got {type(self.policy).__name__}, which has none")
        return self.policy.vocabulary_views()

    def _positions(self, token_ids: Tensor) -> Tensor:
        """Integers of any shape -> int64 rows of the head, -1 for what the draft cannot say or is no id."""
        is_id = (token_ids >= 0) & (token_ids < self.vocab_size)
        return self.head_pos[token_ids.long().masked_fill(~is_id, self.vocab_size)]

    def _count(self, token_ids: Tensor, positions: Tensor) -> None:
        """Both [B, n]: so many ids more were observed, and so many of these cannot be said."""
        is_id = (token_ids >= 0) & (token_ids < self.vocab_size)
        self.counted[:, 0] += is_id.sum(1)
        self.counted[:, 1] += (is_id & (positions < 0)).sum(1)

    def _as_target(self, chosen: DraftVocab) -> DraftVocab:
        return chosen._replace(draft_ids=self.target_ids[chosen.draft_ids], head_pos=chosen.draft_ids)

    def _over_head(self, look_ahead: LookAhead | None) -> LookAhead | None:
        """The policy's own, for ids of the target; what is drafted further was drafted, so it has a row."""
        if look_ahead is None:
            return None
        return lambda ids, states, level: look_ahead(self.head_pos[ids].clamp(min=0), states, level)

    def _refresh(self) -> None:
        """The ids of the policy's present columns, in place."""
        if self.observes:
            positions = self.policy.select(None).draft_ids
            torch.index_select(self.target_ids, 0, positions.flatten(), out=self.draft_ids.view(-1))
