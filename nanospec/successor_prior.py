"""What followed a token earlier in the text, and what the target would have said there, as a prior on draft scores.

A drafter sees one feature; the text so far knows which phrases recur. Their successors get a bonus on their logits when
the tree is grown. The output does not change: a tree is only a proposal. Token Recycling (arXiv:2408.08696) drafts from
such a table alone; here it leans on a trained drafter.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from nanospec.ops.successor_update import successor_update

RANK_WEIGHTS = (1.0, 0.6, 0.4)  # of the target's first, second and third choice after an occurrence
NUM_KEPT = 8
DECAY = 0.8  # of a successor, with every later occurrence of its token


class SuccessorPrior(nn.Module):
    """For each of B sequences and V tokens the strongest successors so far, in fixed-size buffers on the device.

    scale  bonus on a logit per unit of strength; the token that really followed last has strength 1

    Memory per sequence: 96 bytes x V. Raises ValueError unless vocab_size and batch_size are at least 1 and scale is
    not negative.
    """

    ids: Tensor
    strength: Tensor
    rank_weights: Tensor

    def __init__(
        self, vocab_size: int, batch_size: int = 1, scale: float = 1.0, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        if vocab_size < 1 or batch_size < 1:
            raise ValueError(f"vocab_size and batch_size must be at least 1, got {vocab_size} and {batch_size}")
        if not scale >= 0:
            raise ValueError(f"scale must be at least 0, got {scale}")
        self.vocab_size, self.batch_size, self.scale = vocab_size, batch_size, scale
        shape = (batch_size, vocab_size + 1, NUM_KEPT)
        buffers = {
            "ids": torch.zeros(shape, dtype=torch.int64, device=device),
            "strength": torch.zeros(shape, dtype=torch.float32, device=device),
            "rank_weights": torch.tensor((1.0, *RANK_WEIGHTS), dtype=torch.float32, device=device),
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    def reset(self, rows: Tensor | None = None) -> None:
        """Forget all sequences, or those in `rows`: bool [B], or integer positions [m]."""
        if rows is None:
            self.strength.zero_()
        else:
            self.strength[rows] = 0.0

    def for_batch(self, batch_size: int) -> SuccessorPrior:
        """An empty one for so many sequences."""
        return SuccessorPrior(self.vocab_size, batch_size, self.scale, self.ids.device)

    def sequences(self, start: int, stop: int) -> SuccessorPrior:
        """The prior of these sequences alone, in the same memory."""
        other = copy.copy(self)
        per_sequence = {"ids": self.ids[start:stop], "strength": self.strength[start:stop]}
        other._buffers, other.batch_size = {**self._buffers, **per_sequence}, stop - start
        return other

    def copy_sequence(self, source: int, destination: int) -> None:
        """Sequence `destination` becomes what `source` is."""
        for table in (self.ids, self.strength):
            table[destination] = table[source]

    def observe(self, token_ids: Tensor, top_ids: Tensor, next_ids: Tensor | None = None) -> None:
        """See what comes after tokens, oldest first.

        token_ids int64 [B, n]     the tokens; -1 means "none"
        top_ids   int64 [B, n, k]  the target's best ids after each, best first; the first three count
        next_ids  int64 [B, n]     what followed in the text; None or -1 where that is not known

        Raises ValueError for shapes that do not fit.
        """
        if token_ids.dim() != 2 or token_ids.shape[0] != self.batch_size or top_ids.shape[:2] != token_ids.shape:
            raise ValueError(
                f"token_ids must be [{self.batch_size}, n] and top_ids [{self.batch_size}, n, k], "
                f"got {tuple(token_ids.shape)} and {tuple(top_ids.shape)}"
            )
        followed = torch.full_like(token_ids, -1) if next_ids is None else next_ids
        successors = torch.cat((followed[..., None], top_ids[..., : len(RANK_WEIGHTS)]), -1)
        weights = self.rank_weights[: successors.shape[2]][None, None]
        successor_update(token_ids, successors, weights, self.ids, self.strength, DECAY)

    def bonus(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """token_ids int64 [B, n] -> distinct ids of likely successors int64 [B, n, 8], their bonus float32, 0: none.

        A token outside the vocabulary has none.
        """
        is_id = (token_ids >= 0) & (token_ids < self.vocab_size)
        index = torch.where(is_id, token_ids, self.vocab_size)[..., None].expand(-1, -1, NUM_KEPT)
        return self.ids.gather(1, index), self.strength.gather(1, index) * self.scale

    def add_to(self, logits: Tensor, columns: Tensor, bonus: Tensor) -> Tensor:
        """logits [B, n, K] with `bonus` [B, n, S] on `columns` int64 [B, n, S]; a column below 0 stands for none."""
        amount = torch.where(columns < 0, 0.0, bonus).to(logits.dtype)
        return logits.scatter_add(-1, columns.clamp(min=0), amount)
