"""The ids seen last in this sequence as draft vocabulary: prompt, drafted tokens, the target's own suggestions."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nanospec.draft_vocabulary import VocabularyViews
from nanospec.head_shard import HeadShard, head_shard, whole_head
from nanospec.locality_tracker import LocalityTracker, VocabChange
from nanospec.records import DraftVocab, Observation
from nanospec.vocab.same_head import is_same_head
from nanospec.vocab.sources import (
    IN_CONTEXT_SOURCES,
    CandidateSource,
    checked_sources,
    gather_candidates,
    reset_sources,
)


class InContextVocab(nn.Module):
    """The `capacity` (K) ids seen last by each of `batch_size` (B) sequences, over `head_weight` [V, D].

    packed=True keeps their rows contiguous [B, K + 1, D] (the last row takes writes that change nothing) and copies
    those that an observation replaced; packed=False leaves `rows` None, to be read from the head, as they must be
    from a sharded one.

    `pinned_ids` int64 [P] are always among them: with the most frequent ids, what the context shows late is there from
    the start. Such a policy is called "hybrid-P".

    `sources` propose what else is to be among them, see `nanospec.vocab.sources`.

    keep_between_requests: so many of the ids seen last in a request start the next one, as its oldest. 0, the default,
    isolates requests: none sees what another one's text was made of. The tokens are the target's own either way.

    Raises ValueError unless 1 <= capacity <= V, batch_size >= 1, there is a source and keep_between_requests is at
    least 0, for packed rows of a sharded head, and as `LocalityTracker` for the pinned ids; TypeError for a source
    without `candidates`.
    """

    name: str = "in-context"
    observes: bool = True

    def __init__(
        self,
        head_weight: Tensor | HeadShard,
        capacity: int = 3072,
        batch_size: int = 1,
        packed: bool = True,
        pinned_ids: Tensor | None = None,
        sources: Sequence[CandidateSource] = IN_CONTEXT_SOURCES,
        keep_between_requests: int = 0,
    ) -> None:
        super().__init__()
        if keep_between_requests < 0:
            raise ValueError(f"keep_between_requests must be at least 0, got {keep_between_requests}")
        self.keep_between_requests = keep_between_requests
        self.sources = checked_sources(sources)
        if packed and head_shard(head_weight) is not None:
            raise ValueError("packed must be False over a sharded head, whose rows are read where they lie, got True")
        self.head_weight = head_weight.detach()  # a plain attribute: neither saved nor moved with this module
        vocab_size, hidden_size = head_weight.shape
        self.tracker = LocalityTracker(vocab_size, capacity, batch_size, pinned_ids, head_weight.device)
        num_pinned = self.tracker.pinned_ids.shape[0]
        if num_pinned:
            self.name = f"hybrid-{num_pinned}"
        self.rows: Tensor | None = None
        if packed:
            weight = whole_head(self.head_weight)
            self.rows = weight.new_zeros(batch_size, capacity + 1, hidden_size)
            self.rows[:, :num_pinned] = weight[self.tracker.pinned_ids]

    def reset(self, rows: Tensor | None = None) -> None:
        """Forget all sequences, or those in `rows`: bool [B], or integer positions [m]."""
        self._follow(self.tracker.reset(rows, self.keep_between_requests))
        reset_sources(self.sources, rows)

    def for_batch(self, batch_size: int) -> InContextVocab:
        """The same policy, empty, for so many sequences.

        Raises NotImplementedError for sources with memory, and where ids are kept between requests: which request came
        before is chance in a batch; also for a subclass with a constructor of its own, which must have its own
        `for_batch` too.
        """
        if type(self).__init__ is not InContextVocab.__init__:
            raise NotImplementedError(
                f"vocab must have a for_batch of its own in a batch, as it has a constructor, got {type(self).__name__}"
            )
        if self.keep_between_requests:
            raise NotImplementedError(f"keep_between_requests must be 0 in a batch, got {self.keep_between_requests}")
        remembering = next((source for source in self.sources if hasattr(source, "reset")), None)
        if remembering is not None:
            raise NotImplementedError(f"sources must have no memory in a batch, got {type(remembering).__name__}")
        tracker, is_packed = self.tracker, self.rows is not None
        pinned_ids, sources = tracker.pinned_ids, self.sources
        other = type(self)(self.head_weight, tracker.capacity, batch_size, is_packed, pinned_ids, sources)
        other.name = self.name
        return other

    def sequences(self, start: int, stop: int) -> InContextVocab:
        """The policy over these sequences alone, in the same memory."""
        other = copy.copy(self)
        other._modules = {"tracker": self.tracker.sequences(start, stop)}
        other.rows = None if self.rows is None else self.rows[start:stop]
        return other

    def copy_sequence(self, source: int, destination: int) -> None:
        """Sequence `destination` becomes what `source` is."""
        self.tracker.copy_sequence(source, destination)
        if self.rows is not None:
            self.rows[destination] = self.rows[source]

    def learn(self, observation: Observation) -> None:
        """See what the sources propose after one target pass."""
        self.observe(gather_candidates(self.sources, observation))

    def observe(self, token_ids: Tensor) -> None:
        """See `token_ids` [B, n], oldest first; -1 means "none". Raises as `LocalityTracker.observe`."""
        self._follow(self.tracker.observe(token_ids))

    def pin(self, ids: Tensor) -> None:
        """As `LocalityTracker.pin`: ids int64 [P] that stay until they are released or a reset."""
        self._follow(self.tracker.pin(ids))

    def release(self, ids: Tensor) -> None:
        """As `LocalityTracker.release`: ids int64 [P] are pinned no more."""
        self._follow(self.tracker.release(ids))

    def was_seen(self, ids: Tensor) -> Tensor:
        """ids int64 [B, ..] inside the vocabulary -> bool, whether each was observed since the reset."""
        return self.tracker.was_seen(ids)

    def select(self, width: int | None = None) -> DraftVocab:
        """The ids in use, cut to `width` columns: an upper bound of `count` that the caller knows; None: all K.

        Everything returned is a view that the next `observe` changes. Raises ValueError for a width below 1.
        """
        width = self.tracker.capacity if width is None else min(width, self.tracker.capacity)
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        rows = None if self.rows is None else self.rows[:, :width]
        return DraftVocab(self.tracker.draft_ids[:, :width], self.tracker.count, rows)

    def columns(self, ids: Tensor) -> Tensor:
        """ids int64 [B, ..] inside the vocabulary -> the column of each, int64, -1 where it has none now."""
        return self.tracker.token_slot.gather(1, ids.flatten(1)).view_as(ids).long()

    def vocabulary_views(self) -> VocabularyViews:
        """Its buffers for the compile backend; raises ValueError for more than one sequence."""
        return self.tracker.vocabulary_views()._replace(pack=self._rows_of)

    def _rows_of(self, weight: Tensor) -> Tensor | None:
        """The rows [K, D] kept here, if `weight` is the head that they were copied from."""
        if self.rows is None or not is_same_head(weight, self.head_weight):
            return None
        return self.rows[0, : self.tracker.capacity]

    def _follow(self, change: VocabChange) -> None:
        """Copy the rows of what changed, in packed mode."""
        rows = self.rows
        if rows is None:
            return
        num_sequences, num_slots, _ = rows.shape
        first_slot = torch.arange(0, num_sequences * num_slots, num_slots, device=rows.device)[:, None]
        new_rows = whole_head(self.head_weight).index_select(0, change.ids.flatten())
        rows.view(num_sequences * num_slots, -1).index_copy_(0, (change.slots + first_slot).flatten(), new_rows)
