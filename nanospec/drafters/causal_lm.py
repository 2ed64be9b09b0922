"""A small causal language model as drafter: the text's own tokens in, no feature of the target, its own cache and head.

Classic speculative decoding (Leviathan et al. 2023; Chen et al. 2023); its head over a chosen vocabulary is VocabTrim's
setting (Goel et al. 2025).
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nanospec.gathered_head import GatheredHead
from nanospec.kv_cache import CachePlace, CacheRows
from nanospec.records import DraftVocab
from nanospec.target import Target
from nanospec.vocab.same_head import is_same_head

log = logging.getLogger(__name__)


class CausalLMMemory(NamedTuple):
    """The key-value buffer of the model."""

    buffer: Tensor


class CausalLMDrafter(nn.Module):
    """Any model that could be a `Target`, drafting for another one with the same tokenizer; a `FixedShapeDrafter`.

    vocab_size: ids of the target (V). The draft's head may have other rows through padding: what lies beyond V is cut
    off, and ids that it has no row for are never drafted (-inf); how many is logged once. A token that its embedding
    lacks is read as its last one.

    States [B, n, D] are the last hidden states after the final norm. The cache holds the whole text, the root included:
    one token more than EAGLE's and the target's.

    Raises NotImplementedError for a model that could not be a target.
    """

    name = "causal-lm"

    def __init__(self, model: PreTrainedModel, vocab_size: int) -> None:
        super().__init__()
        try:
            self.body = Target(model)
        except NotImplementedError as error:
            raise NotImplementedError(f"draft must be a model that could be a target itself: {error}") from None
        if self.body.ranks.size > 1:
            raise NotImplementedError(
                f"draft must be whole on every process, got one that is tensor parallel over {self.body.ranks.size}"
            )
        self.vocab_size, self.num_embeddings = vocab_size, model.get_input_embeddings().weight.shape[0]
        self._head: tuple[GatheredHead, ...] = ()  # in a tuple: weights are saved and moved with the model
        if self.num_unscored:
            log.info("the draft scores %d of %d ids: the others are never drafted", self.num_rows, vocab_size)

    @property
    def dtype(self) -> torch.dtype:
        return self.body.dtype

    @property
    def num_rows(self) -> int:
        """V': ids that it scores, the first ones."""
        return min(self.body.vocab_size, self.vocab_size)

    @property
    def num_unscored(self) -> int:
        """Ids of the target that its head has no row for."""
        return self.vocab_size - self.num_rows

    @property
    def state_size(self) -> int:
        return self.body.head_weight.shape[1]

    @property
    def target_ids(self) -> Tensor | None:
        """int64 [V'], the first ids of the target; None if it scores all of them."""
        return torch.arange(self.num_rows, device=self.body.device) if self.num_unscored else None

    @property
    def head(self) -> GatheredHead:
        """Over the first V' rows of its own head, wherever that lies now."""
        weight, bias = self.body.head_weight[: self.num_rows], self.body.head_bias
        if not self._head or not is_same_head(self._head[0].weight, weight):
            self._head = (GatheredHead(weight, None if bias is None else bias[: self.num_rows]),)
        return self._head[0]

    def reset(self, capacity: int) -> None:
        self.body.reset(capacity)

    def resume(self, num_tokens: int, capacity: int) -> int:
        if self.body.cache.length <= num_tokens:  # it holds the token after them, too
            return 0
        self.body.resume(num_tokens + 1, capacity)
        return num_tokens

    def begin(self, first_id: Tensor) -> None:
        self.body.read(self._readable(first_id))

    def extend(self, token_ids: Tensor, features: Tensor) -> Tensor:
        return self.body.read(self._readable(token_ids))[:, -1:]

    def advance(self, token_ids: Tensor, states: Tensor, depth: int, visible: Tensor) -> Tensor:
        cache, num_tokens = self.body.cache, token_ids.shape[1]
        seen = torch.cat((visible.new_ones(*visible.shape[:2], cache.length), visible), -1)
        rows = cache.rows(num_tokens, behind=visible.shape[-1] - num_tokens)
        return self._run_level(token_ids, depth, seen, cache.length, rows)

    def memory(self) -> CausalLMMemory:
        return CausalLMMemory(self.body.cache.buffer)

    def advance_at(
        self, token_ids: Tensor, states: Tensor, depth: int, visible: Tensor, place: CachePlace, memory: CausalLMMemory
    ) -> Tensor:
        place, num_tokens = _with_root(place), token_ids.shape[1]
        rows = place.rows(memory.buffer, num_tokens, behind=visible.shape[-1] - num_tokens)
        return self._run_level(token_ids, depth, place.visible(visible), place.length, rows)

    def extend_at(
        self, token_ids: Tensor, features: Tensor, num_tokens: Tensor, place: CachePlace, memory: CausalLMMemory
    ) -> Tensor:
        place, count = _with_root(place), token_ids.shape[1]
        rows = place.rows(memory.buffer, count)
        causal = torch.ones(1, count, count, dtype=torch.bool, device=token_ids.device).tril()
        depth, ids = torch.arange(count, device=token_ids.device)[None], self._readable(token_ids)
        states = self.body.hidden_states(ids, place.length, depth, place.visible(causal), rows, depth)
        return states.index_select(1, num_tokens - 1)

    def commit(self, num_tokens: int) -> None:
        self.body.cache.commit(num_tokens)

    def clear_uncertain(self) -> None:
        self.body.cache.clear_uncertain()

    def logits(self, states: Tensor, vocab: DraftVocab) -> Tensor:
        """As `Drafter.logits`. A vocabulary with rows, or positions in the head, must be made of rows of `head`; one of
        ids alone may name any id of the target: those without a row score -inf."""
        if vocab.rows is not None or vocab.head_pos is not None or not self.num_unscored:
            return self.head(states, vocab)
        scored = vocab._replace(draft_ids=vocab.draft_ids.clamp(max=self.num_rows - 1))
        has_no_row = (vocab.draft_ids >= self.num_rows)[:, None]
        return self.head(states, scored).masked_fill(has_no_row, float("-inf"))

    def _run_level(
        self, token_ids: Tensor, depth: int, visible: Tensor, length: Tensor | int, rows: CacheRows
    ) -> Tensor:
        """One level behind the levels before, all of as many tokens: those at tree depth d lie at length + d - 1."""
        levels = torch.arange(depth, device=token_ids.device).expand(token_ids.shape[0], -1)
        row_depth = levels.repeat_interleave(token_ids.shape[1], 1)
        own_depth = torch.full_like(token_ids, depth - 1)
        return self.body.hidden_states(self._readable(token_ids), length, own_depth, visible, rows, row_depth)

    def _readable(self, token_ids: Tensor) -> Tensor:
        last = self.num_embeddings - 1
        return token_ids if last >= self.vocab_size - 1 else token_ids.clamp(max=last)


def _with_root(place: CachePlace) -> CachePlace:
    """The place in a cache that holds the root among the certain tokens: the target's does not yet."""
    return place._replace(length=place.length + 1)
