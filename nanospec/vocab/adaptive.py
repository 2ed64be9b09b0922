"""A hybrid vocabulary whose base grows and shrinks: as many of the most frequent ids as the text turns out to need."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nanospec.draft_vocabulary import VocabularyViews
from nanospec.locality_tracker import LocalityTracker
from nanospec.records import DraftVocab, Observation
from nanospec.vocab.base_size import BLOCK_IDS, MOST_BLOCKS, BaseSize
from nanospec.vocab.in_context import InContextVocab
from nanospec.vocab.reduced import ReducedVocab
from nanospec.vocab.static_list import check_token_ids
from nanospec.vocab.with_prior import PriorVocab

if TYPE_CHECKING:
    from nanospec.vocab_selector import VocabSelector


class AdaptiveVocab(nn.Module):
    """`policy` and the first blocks of `ranked_ids` int64 [M], most frequent first; see `BaseSize` for how many.

    Every target pass leaves in `num_lacking` int64 [1], on the device, how many of the tokens that it added to the text
    had not been seen before in this request and are among `ranked_ids`. Whoever reads it back says so with `adapt`,
    which may pin or release one block; ids of a block that the text has used stay when the block goes. There are at
    most eight blocks of `block_ids` ids, and at least half of the policy's capacity is left to the context.

    row_cost  what a row costs, as a share of a decoding step; None: what the decoding loop says, see `price_rows`

    Raises TypeError for a policy that does not follow the context, ValueError for one over several sequences or with
    pinned ids of its own, for `ranked_ids` that are empty, not 1-D, repeated, outside the vocabulary or none that a
    reduced one can say, TypeError for no integers, ValueError for block_ids below 1, and as `BaseSize`.
    """

    name: str = "hybrid-auto"
    observes: bool = True
    ranked_ids: Tensor
    is_ranked: Tensor
    num_lacking: Tensor

    def __init__(
        self,
        policy: InContextVocab | ReducedVocab,
        ranked_ids: Tensor,
        row_cost: float | None = None,
        block_ids: int = BLOCK_IDS,
    ) -> None:
        super().__init__()
        tracker = _tracker_of(policy)
        if block_ids < 1:
            raise ValueError(f"block_ids must be at least 1, got {block_ids}")
        vocab_size = policy.vocab_size if isinstance(policy, ReducedVocab) else tracker.vocab_size
        _check_ranked(policy, ranked_ids, vocab_size)
        most_ids = min(MOST_BLOCKS * block_ids, tracker.capacity // 2)
        ranked_ids = ranked_ids[:most_ids].to(tracker.count.device, torch.int64)
        if ranked_ids.shape[0] == 0:
            raise ValueError(f"ranked_ids must hold an id that a capacity of {tracker.capacity} has room for, got none")
        self.policy, self.block_ids, self.capacity = policy, min(block_ids, ranked_ids.shape[0]), tracker.capacity
        self._given_cost, self._row_cost = row_cost, row_cost or 0.0
        is_ranked = torch.zeros(vocab_size, dtype=torch.bool, device=ranked_ids.device)
        buffers = {
            "ranked_ids": ranked_ids,
            "is_ranked": is_ranked.index_fill_(0, ranked_ids, True),
            "num_lacking": torch.zeros(1, dtype=torch.int64, device=ranked_ids.device),
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)
        self.reset()

    def price_rows(self, row_cost: float) -> None:
        """What a row costs from the next `reset` on, as a share of a decoding step, unless the constructor was told."""
        if self._given_cost is None:
            self._row_cost = row_cost

    def reset(self, rows: Tensor | None = None) -> None:
        """As the policy's; the base is as large as typical text needs. Raises NotImplementedError for single rows."""
        if rows is not None:
            raise NotImplementedError("rows must be None with a base that adapts, which is one for all sequences")
        self.policy.reset()
        self._size = BaseSize(len(self._blocks()), self._row_cost, self.block_ids)
        self.num_blocks = self._size.num_blocks
        self.policy.pin(self.ranked_ids[: self.num_blocks * self.block_ids])

    def learn(self, observation: Observation) -> None:
        """As the policy's; counts what the context lacked."""
        ids = observation.next_ids.clamp(min=0)
        is_lacking = (observation.next_ids >= 0) & self.is_ranked[ids] & ~self.policy.was_seen(ids)
        torch.sum(is_lacking, (0, 1), out=self.num_lacking[0])
        self.policy.learn(observation)

    def adapt(self, num_lacking: int, num_tokens: int) -> int:
        """After a step of `num_tokens` new tokens that left `num_lacking`: the most rows that the base has grown by."""
        num_blocks, blocks = self._size.observe(num_lacking, num_tokens), self._blocks()
        before, self.num_blocks = self.num_blocks, num_blocks
        for block in blocks[before:num_blocks]:
            self.policy.pin(block)
        for block in blocks[num_blocks:before]:
            self.policy.release(block)
        return sum(block.shape[0] for block in blocks[before:num_blocks])

    def select(self, width: int | None = None) -> DraftVocab:
        """As the policy's."""
        return self.policy.select(width)

    def columns(self, ids: Tensor) -> Tensor:
        return self.policy.columns(ids)

    def vocabulary_views(self) -> VocabularyViews:
        """The policy's buffers: the base comes and goes in place."""
        return self.policy.vocabulary_views()

    def _blocks(self) -> tuple[Tensor, ...]:
        return self.ranked_ids.split(self.block_ids)


def adaptive_part(vocab: VocabSelector) -> AdaptiveVocab | None:
    """The part of a policy that wants to hear of every step, if there is one."""
    vocab = vocab.policy if isinstance(vocab, PriorVocab) else vocab
    return vocab if isinstance(vocab, AdaptiveVocab) else None


def policy_below(vocab: VocabSelector) -> VocabSelector:
    """The policy without its prior and without its adaptive base."""
    while isinstance(vocab, PriorVocab | AdaptiveVocab):
        vocab = vocab.policy
    return vocab


def _check_ranked(policy: InContextVocab | ReducedVocab, ranked_ids: Tensor, vocab_size: int) -> None:
    if ranked_ids.dim() != 1:
        raise ValueError(f"ranked_ids must be 1-D, got shape {tuple(ranked_ids.shape)}")
    check_token_ids(ranked_ids.tolist(), vocab_size, "ranked_ids")
    if isinstance(policy, ReducedVocab):
        unsayable = ranked_ids[policy.head_pos[ranked_ids.to(policy.head_pos.device, torch.int64)].cpu() < 0]
        if unsayable.numel():
            raise ValueError(f"ranked_ids must be ids that the draft can say, got {unsayable[:5].tolist()}")


def _tracker_of(policy: InContextVocab | ReducedVocab) -> LocalityTracker:
    in_context = policy.policy if isinstance(policy, ReducedVocab) else policy
    if not isinstance(in_context, InContextVocab):
        raise TypeError(f"policy must be an InContextVocab, alone or reduced, got {type(in_context).__name__}")
    tracker = in_context.tracker
    if tracker.batch_size != 1:
        raise ValueError(f"policy must be of one sequence, got {tracker.batch_size}")
    if tracker.num_pinned:
        raise ValueError(f"policy must have no pinned ids, as these come from ranked_ids, got {tracker.num_pinned}")
    return tracker
