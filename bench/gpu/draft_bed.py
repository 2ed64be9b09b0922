"""A draft of fixed shapes over an EAGLE layer alone: what a decoding step's graph runs before the target's pass."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.gpu.timing import Call
from nanospec.drafters.eagle import DraftMemory, EagleDrafter
from nanospec.gathered_head import GatheredHead
from nanospec.kv_cache import CachePlace, KVCache
from nanospec.ops.gathered_topk_logprob import gathered_topk_logprob
from nanospec.records import DraftTree, DraftVocab
from nanospec.tree_drafter import Children, best_children, grow_tree, ids_at
from nanospec.tree_shape import TreeShape


class DraftBed:
    """Drafts for `batch_size` sequences behind `context_length` cached tokens of random keys and values."""

    def __init__(self, drafter: EagleDrafter, tree: TreeShape, context_length: int, batch_size: int = 1) -> None:
        weight, shape = drafter.fc.weight, drafter.shape
        self.drafter, self.tree, self.device, self.batch_size = drafter, tree, weight.device, batch_size
        num_extended, num_drafted = tree.depth + 1, (tree.depth - 1) * tree.branching
        capacity = context_length + num_extended + num_drafted
        cache = KVCache(1, shape.num_kv_heads, shape.head_dim, weight.dtype, weight.device, batch_size)
        cache.reset(capacity)
        self.memory = DraftMemory(cache.buffer.normal_(), *drafter.rotation(capacity))
        self.certain = self._place(context_length, capacity)
        self.extended = self._place(context_length + num_extended, capacity)
        self.num_extended = torch.full((batch_size,), num_extended, device=weight.device)
        self.new_ids = torch.zeros(batch_size, num_extended, dtype=torch.int64, device=weight.device)
        self.features = weight.new_empty(batch_size, num_extended, shape.hidden_size).normal_()

    def advance(self, token_ids: Tensor, states: Tensor, depth: int, visible: Tensor) -> Tensor:
        return self.drafter.advance_at(token_ids, states, depth, visible, self.extended, self.memory)

    def draft(self, children: Children) -> DraftTree:
        """The pass over depth + 1 accepted tokens, then all levels and the tree."""
        state = self.drafter.extend_at(self.new_ids, self.features, self.num_extended, self.certain, self.memory)
        return grow_tree(self.tree, self.new_ids[:, -1:], state, self.advance, children)

    def level(self, children: Children) -> Call:
        """One level of `branching` nodes per sequence in the middle of the draft: body, head, best children."""
        width, depth = self.tree.branching, max(1, self.tree.depth // 2)
        ids = torch.zeros(self.batch_size, width, dtype=torch.int64, device=self.device)
        states = self.features[:, :1].expand(-1, width, -1).contiguous()
        visible = torch.eye(width, dtype=torch.bool, device=self.device).repeat(self.batch_size, 1, depth)
        return lambda: children(self.advance(ids, states, depth, visible), ids, depth)

    def bookkeeping(self) -> DraftTree:
        """The tree alone: no body, no head."""
        state = self.features[:, :1]
        return grow_tree(
            self.tree, self.new_ids[:, -1:], state, lambda ids, states, depth, visible: states, self.headless()
        )

    def headless(self) -> Children:
        """Children by constant logits over as many ids as a node has children: the head deleted."""
        branching = self.tree.branching
        logits = torch.arange(branching, dtype=torch.float32, device=self.device)
        return lambda states, token_ids, level: best_children(logits.expand(*states.shape[:2], -1), branching)

    def _place(self, length: int, capacity: int) -> CachePlace:
        return CachePlace(torch.full((self.batch_size,), length, device=self.device), capacity)


def children_by_head(head: GatheredHead, vocab: DraftVocab, branching: int) -> Children:
    """Logits over the draft vocabulary, log-softmax, top-k: packed where `vocab` holds rows, else indexed."""

    def children(states: Tensor, token_ids: Tensor, level: int) -> tuple[Tensor, Tensor]:
        pos, score = best_children(head(states, vocab), branching)
        return ids_at(vocab.draft_ids, pos), score

    return children


def children_by_fused_head(head: GatheredHead, vocab: DraftVocab, branching: int) -> Children:
    """The same in one operator, which never writes the logits."""

    def children(states: Tensor, token_ids: Tensor, level: int) -> tuple[Tensor, Tensor]:
        return gathered_topk_logprob(
            states, head.weight, vocab.draft_ids, branching, head.bias, vocab.count, vocab.rows
        )

    return children


def in_context_children(head: GatheredHead, draft_ids: Tensor, branching: int) -> dict[str, Children]:
    """Every way to draft from `draft_ids` int64 [B, K], all active, by name."""
    count = torch.full(draft_ids.shape[:1], draft_ids.shape[1], dtype=torch.int32, device=draft_ids.device)
    rows = head.weight.index_select(0, draft_ids.flatten()).unflatten(0, draft_ids.shape)
    packed, indexed = DraftVocab(draft_ids, count, rows), DraftVocab(draft_ids, count, None)
    return {
        "packed": children_by_head(head, packed, branching),
        "indexed": children_by_head(head, indexed, branching),
        "indexed fused": children_by_fused_head(head, indexed, branching),
    }


def random_draft_ids(vocab_size: int, num_ids: int, batch_size: int, device: torch.device) -> Tensor:
    """int64 [B, K], distinct within a row."""
    return torch.stack([torch.randperm(vocab_size, device=device)[:num_ids] for _ in range(batch_size)])
