"""The drafter's output projection over the draft vocabulary only; unused columns come out as -inf."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanospec.head_shard import HeadShard, head_shard
from nanospec.ops.gathered_linear import gathered_linear, rows_linear
from nanospec.ops.gathered_topk_logprob import MAX_BEST, best_of_logits, gathered_topk_logprob
from nanospec.records import DraftVocab

MAX_KERNEL_IDS = 16384  # beyond, a dense product and a search by blocks


class GatheredHead(nn.Module):
    """hidden [B, n, D] and a DraftVocab -> logits [B, n, K] over `draft_ids`, by either way to the same numbers.

    packed   `vocab.rows` holds the rows contiguously: one dense product
    indexed  `vocab.rows` is None: the rows are read from `weight` [V, D]

    `weight` and `bias` [V] are references to the target's head: not registered, so never saved, moved or trained here.

    A weight that lies on several processes, as a DTensor sharded by rows (`tp_plan="auto"`) or as a `HeadShard`, is
    read where it lies, by all of them together: see `HeadShard.logits`. There is no packed mode then.

    Raises ValueError for a weight that is not 2-D or a bias that does not fit it, and as `head_shard`.
    """

    def __init__(self, weight: Tensor | HeadShard, bias: Tensor | None = None) -> None:
        super().__init__()
        if len(weight.shape) != 2:
            raise ValueError(f"weight must be [V, D], got shape {tuple(weight.shape)}")
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"bias must be [{weight.shape[0]}], got shape {tuple(bias.shape)}")
        self.shard = head_shard(weight)  # None: the head is whole
        self.weight = weight.rows if isinstance(weight, HeadShard) else weight.detach()
        self.bias = None if bias is None else bias.detach() if self.shard is None else self.shard.local_bias(bias)

    def forward(self, hidden: Tensor, vocab: DraftVocab) -> Tensor:
        """Logits in the dtype of `hidden`, -inf in the columns from `vocab.count` on.

        Raises ValueError where shapes do not fit, TypeError where the dtypes of hidden and head differ.
        """
        head_pos = vocab.draft_ids if vocab.head_pos is None else vocab.head_pos
        if self.shard is not None:
            return self._sharded_logits(self.shard, hidden, vocab)
        if vocab.rows is None:
            count = None if vocab.all_active else vocab.count
            return gathered_linear(hidden, self.weight, head_pos, self.bias, count)
        _check_rows(hidden, vocab)
        logits = rows_linear(hidden, vocab.rows, None if self.bias is None else self.bias[head_pos])
        return logits if vocab.all_active else _mask_unused(logits, vocab.count)

    def best(self, hidden: Tensor, vocab: DraftVocab, k: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """The k best ids after every token, int64 [B, n, k], and their log-probabilities over the draft vocabulary, of
        logits divided by `temperature`.

        Where the vocabulary has `head_pos`, positions in the head in place of ids. As `gathered_topk_logprob`, which on
        CUDA is two kernels that write no logits. Raises as it does.
        """
        count = None if vocab.all_active else vocab.count
        head_pos = vocab.draft_ids if vocab.head_pos is None else vocab.head_pos
        bias = self.bias
        if self.shard is not None:
            logits = self._sharded_logits(self.shard, hidden, vocab)
            return best_of_logits(logits / temperature, head_pos, k)
        if temperature != 1.0:
            hidden, bias = hidden / temperature, None if bias is None else bias / temperature
        return gathered_topk_logprob(hidden, self.weight, head_pos, k, bias, count, vocab.rows)

    def has_kernel(self, vocab: DraftVocab, k: int) -> bool:
        """Whether `best` is the fast way: on CUDA, over a vocabulary that is narrow against the whole."""
        weight, num_ids = self.weight, vocab.draft_ids.shape[1]
        if self.shard is not None:
            return False
        return weight.is_cuda and weight.dtype != torch.float64 and num_ids <= MAX_KERNEL_IDS and k <= MAX_BEST

    def _sharded_logits(self, shard: HeadShard, hidden: Tensor, vocab: DraftVocab) -> Tensor:
        if vocab.rows is not None:
            raise ValueError(f"rows must be None over a sharded head, got {tuple(vocab.rows.shape)}")
        head_pos = vocab.draft_ids if vocab.head_pos is None else vocab.head_pos
        return shard.logits(hidden, head_pos, self.bias, None if vocab.all_active else vocab.count)


def _check_rows(hidden: Tensor, vocab: DraftVocab) -> None:
    rows = vocab.rows
    assert rows is not None, "only called in packed mode"
    if hidden.dim() != 3 or hidden.shape[2] != rows.shape[-1] or vocab.draft_ids.shape != rows.shape[:2]:
        shapes = tuple(hidden.shape), tuple(vocab.draft_ids.shape), tuple(rows.shape)
        raise ValueError(
            "hidden must be [B, n, D], draft_ids [B or 1, K], rows [B or 1, K, D], got {}, {}, {}".format(*shapes)
        )
    if rows.shape[0] not in (1, hidden.shape[0]):
        raise ValueError(f"rows must serve 1 or {hidden.shape[0]} sequences, got {rows.shape[0]}")
    if hidden.dtype != rows.dtype:
        raise TypeError(f"hidden must have the head's dtype {rows.dtype}, got {hidden.dtype}")


def _mask_unused(logits: Tensor, count: Tensor) -> Tensor:
    """-inf in the columns from `count` [B or 1] on, in place."""
    num_ids = logits.shape[-1]
    if count.device.type == "cpu" and count.shape[0] == 1 and not torch.compiler.is_compiling():
        num_active = int(count)  # nothing waits there
        if num_active < num_ids:
            logits.narrow(-1, num_active, num_ids - num_active).fill_(float("-inf"))
        return logits
    unused = torch.arange(num_ids, device=logits.device) >= count[:, None]  # [B or 1, K]
    return logits.masked_fill_(unused[:, None], float("-inf"))
