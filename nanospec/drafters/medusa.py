"""Medusa heads: several heads on one feature of the target, each for a token further ahead (Cai et al. 2024, 2.1.1).

For the feature h of the last position whose next token is certain (the root of the tree), head d = 1, 2, ..

    z_d   = ResBlock_L(.. ResBlock_1(h)),  ResBlock(x) = x + silu(W x + b)
    logits = rows_d z_d                     scores of the token d places after the root

The target's own head predicts the root itself. No head knows what the others say, so all nodes of a level have the same
children, and a tree needs no further pass of a model: there is no cache and no pass over the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanospec.gathered_head import GatheredHead
from nanospec.kv_cache import CachePlace
from nanospec.ops.gathered_linear import gathered_linear, rows_linear
from nanospec.records import DraftVocab
from nanospec.vocab.same_head import is_same_head


@dataclass(frozen=True)
class MedusaShape:
    """Sizes of Medusa heads.

    num_heads    tokens drafted per branch
    num_layers   ResBlocks per head, 0 for none
    num_outputs  matrices of output rows: one per head, 1 that all heads share, or 0 where they use the target's head
    num_rows     rows of each, as many as the target has ids unless there is a token map
    bias         whether the ResBlocks have one
    """

    hidden_size: int
    num_heads: int
    num_layers: int
    num_outputs: int
    num_rows: int
    bias: bool = True


class MedusaDrafter(nn.Module):
    """Medusa heads as a `Drafter`, whose trees are at most `max_depth` levels deep: one level per head.

    A state [B, n, m * D] holds z of the m heads that have not spoken yet, the next one first: its width says how deep a
    node lies, so that `logits` needs to be told nothing else.

    target_head  the target's head (shared, not owned)
    token_map    int64 [num_rows], the id that each output row scores; other ids are -inf. None: row i scores id i
    """

    name = "medusa"
    blocks: nn.Parameter
    token_map: Tensor | None
    row_of_id: Tensor | None

    def __init__(self, shape: MedusaShape, target_head: GatheredHead, token_map: Tensor | None = None) -> None:
        super().__init__()
        width, sizes = shape.hidden_size, (shape.num_layers, shape.num_heads)
        self.shape = shape
        self.blocks = nn.Parameter(torch.zeros(*sizes, width, width))
        self.biases = nn.Parameter(torch.zeros(*sizes, width)) if shape.bias else None
        self.outputs = nn.ParameterList(torch.zeros(shape.num_rows, width) for _ in range(shape.num_outputs))
        self._shared = (target_head,)  # in a tuple, so that the target's weights are not ours to move or save
        row_of_id = None if token_map is None else _row_of_id(token_map, target_head.weight.shape[0])
        self.register_buffer("token_map", token_map, persistent=False)
        self.register_buffer("row_of_id", row_of_id, persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        return self.blocks.dtype

    @property
    def max_depth(self) -> int:
        return self.shape.num_heads

    @property
    def state_size(self) -> int:
        return self.shape.num_heads * self.shape.hidden_size

    def reset(self, capacity: int) -> None:
        """Nothing to forget: the heads remember nothing."""

    def resume(self, num_tokens: int, capacity: int) -> int:
        return num_tokens

    @torch.no_grad()
    def extend(self, token_ids: Tensor, features: Tensor) -> Tensor:
        return self._run(features[:, -1:])

    @torch.no_grad()
    def extend_at(
        self, token_ids: Tensor, features: Tensor, num_tokens: Tensor, place: CachePlace, memory: tuple[()]
    ) -> Tensor:
        """`extend` by the first `num_tokens` of token_ids."""
        return self._run(features.index_select(1, num_tokens - 1))

    def advance(self, token_ids: Tensor, states: Tensor, depth: int, visible: Tensor) -> Tensor:
        return states[..., self.shape.hidden_size :]

    def advance_at(
        self, token_ids: Tensor, states: Tensor, depth: int, visible: Tensor, place: CachePlace, memory: tuple[()]
    ) -> Tensor:
        """As `advance`."""
        return self.advance(token_ids, states, depth, visible)

    def memory(self) -> tuple[()]:
        """Nothing."""
        return ()

    def commit(self, num_tokens: int) -> None:
        """Nothing to count."""

    def clear_uncertain(self) -> None:
        """Nothing to clear."""

    @torch.no_grad()
    def logits(self, states: Tensor, vocab: DraftVocab) -> Tensor:
        """As `Drafter.logits`, by the head that the width of the states names.

        Raises ValueError if all heads have spoken: a tree must not be deeper than `max_depth`.
        """
        width, target_head = self.shape.hidden_size, self._shared[0]
        head = self.shape.num_heads - states.shape[-1] // width
        if head == self.shape.num_heads:
            raise ValueError(f"tree depth must be at most {head}, the number of Medusa heads, got a deeper tree")
        hidden = states[..., :width].contiguous()
        if not self.outputs:
            return target_head(hidden, vocab)
        weight = self.outputs[head % self.shape.num_outputs]
        if vocab.rows is not None and is_same_head(vocab.rows[0], target_head.weight):
            return self._whole(hidden, weight)
        return self._gathered(hidden, weight, vocab)

    def _run(self, features: Tensor) -> Tensor:
        """features [B, 1, D] -> states [B, 1, num_heads * D], all heads in one product per layer."""
        hidden = features.transpose(0, 1).expand(self.shape.num_heads, -1, -1)  # [num_heads, B, D]
        for layer in range(self.shape.num_layers):
            product = hidden @ self.blocks[layer].mT
            hidden = hidden + F.silu(product if self.biases is None else product + self.biases[layer][:, None])
        return hidden.transpose(0, 1).flatten(1)[:, None]

    def _whole(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """hidden [B, n, D] -> logits [B, n, V] of all ids, without a copy of the rows."""
        logits = rows_linear(hidden, weight[None])
        if self.token_map is None:
            return logits
        vocab_size = self._shared[0].weight.shape[0]
        return logits.new_full((*logits.shape[:2], vocab_size), -torch.inf).index_copy_(2, self.token_map, logits)

    def _gathered(self, hidden: Tensor, weight: Tensor, vocab: DraftVocab) -> Tensor:
        """The same from the rows of the draft vocabulary: rows that it may hold are the target's, not this head's."""
        count = None if vocab.all_active else vocab.count
        if self.row_of_id is None:
            return gathered_linear(hidden, weight, vocab.draft_ids, None, count)
        rows = self.row_of_id[vocab.draft_ids]  # [B or 1, K]
        logits = gathered_linear(hidden, weight, rows.clamp(min=0), None, count)
        return logits.masked_fill_((rows < 0)[:, None], -torch.inf)


def _row_of_id(token_map: Tensor, vocab_size: int) -> Tensor:
    """int64 [V], -1 for ids without a row. Example: token_map [3, 0] and 4 ids give [1, -1, -1, 0]."""
    rows = torch.arange(token_map.shape[0], device=token_map.device)
    return token_map.new_full((vocab_size,), -1).scatter_(0, token_map, rows)
