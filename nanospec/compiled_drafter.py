"""A draft tree as one compiled graph: all levels of an EAGLE drafter, its head and the book-keeping between them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nanospec.draft_vocabulary import HasVocabularyViews
from nanospec.drafters.drafter import Drafter
from nanospec.drafters.eagle import DraftMemory, EagleDrafter
from nanospec.graph_compiler import DRAFT_BACKEND, compile_apart, mark_growing
from nanospec.kv_cache import CachePlace
from nanospec.ops.gathered_linear import shared_gathered_linear
from nanospec.records import DraftTree, DraftVocab
from nanospec.tree_drafter import Children, best_children, grow_tree, sharpen
from nanospec.tree_shape import TreeShape
from nanospec.vocab.adaptive import policy_below
from nanospec.vocab.full import FullVocab
from nanospec.vocab.reduced import ReducedVocab
from nanospec.vocab.with_prior import PriorVocab
from nanospec.vocab_selector import VocabSelector


class CompiledTreeDrafter:
    """`TreeDrafter` whose `draft` is one graph, the same for every context length.

    children: as in `grow_tree`; backend, options: as in torch.compile.
    """

    def __init__(
        self, drafter: EagleDrafter, shape: TreeShape, children: Children, backend: str, options: dict | None = None
    ) -> None:
        self.drafter, self.shape = drafter, shape.validated()
        num_drafted = (shape.depth - 1) * shape.branching

        def draft_tree(root_id: Tensor, root_state: Tensor, length: Tensor, seen: Tensor, *memory: Tensor) -> DraftTree:
            place = CachePlace(length, seen.shape[0] + num_drafted)

            def advance(token_ids: Tensor, states: Tensor, depth: int, visible: Tensor) -> Tensor:
                return drafter.advance_at(token_ids, states, depth, visible, place, DraftMemory(*memory))

            return grow_tree(shape, root_id, root_state, advance, children)

        self._num_drafted = num_drafted
        self._draft_tree = compile_apart(draft_tree, backend, options)

    def draft(
        self, root_id: Tensor, root_state: Tensor, vocab: DraftVocab, place: CachePlace | None = None
    ) -> DraftTree:
        """As `TreeDrafter.draft`; `vocab` is not read: the graph holds the vocabulary's own buffers."""
        memory, length = self.drafter.memory(), self.drafter.cache.length
        if place is None:
            place = CachePlace(torch.full((1,), length, device=root_id.device), length + self._num_drafted)
        # A graph takes sizes from tensors only: this one is as long as the certain rows.
        seen = place.length.new_empty(place.width - self._num_drafted)
        # Copies, because a view tells its parent's length by its strides, and that would be one graph per length.
        root_id, root_state = (x.clone(memory_format=torch.contiguous_format) for x in (root_id, root_state))
        angles = mark_growing(memory.cos, 0), mark_growing(memory.sin, 0)
        return self._draft_tree(
            root_id, root_state, place.length, mark_growing(seen, 0), mark_growing(memory.buffer, 4), *angles
        )


def compile_tree_drafter(
    drafter: Drafter, shape: TreeShape, vocab: VocabSelector, inner: str, temperature: float = 1.0
) -> CompiledTreeDrafter:
    """Drafts over `vocab`: the graph scores all V ids, and backend "nanospec" makes that the vocabulary's.

    Over a `FullVocab` nothing is to be restricted: that is compiled by `inner` alone. With a prior, whose bonus goes to
    columns of the vocabulary, the graph is written over these. Raises what `refuse_uncompiled` raises.
    """
    refuse_uncompiled(drafter, vocab)
    assert isinstance(drafter, EagleDrafter), "refused above"
    head, target_ids, is_full = drafter.head, drafter.target_ids, isinstance(_over_head(vocab), FullVocab)

    def children(states: Tensor, token_ids: Tensor, level: int) -> tuple[Tensor, Tensor]:
        logits = sharpen(F.linear(drafter.before_head(states), head.weight, head.bias), temperature)
        if isinstance(vocab, PriorVocab):
            logits = vocab.raise_scores(logits, token_ids)
        head_pos, score = best_children(logits, shape.branching, by_blocks=is_full)
        return head_pos if target_ids is None else target_ids[head_pos], score

    if isinstance(vocab, PriorVocab) and not is_full:
        return CompiledTreeDrafter(drafter, shape, _children_with_prior(drafter, shape, vocab, temperature), inner)
    if is_full:
        return CompiledTreeDrafter(drafter, shape, children, inner)
    return CompiledTreeDrafter(drafter, shape, children, DRAFT_BACKEND, {"vocabulary": vocab, "inner": inner})


def _children_with_prior(drafter: EagleDrafter, shape: TreeShape, vocab: PriorVocab, temperature: float) -> Children:
    """Children over the columns of the vocabulary's own buffers."""
    head, target_ids, views = drafter.head, drafter.target_ids, vocab.vocabulary_views()
    rows = views.pack(head.weight)

    def children(states: Tensor, token_ids: Tensor, level: int) -> tuple[Tensor, Tensor]:
        hidden = drafter.before_head(states)
        logits = shared_gathered_linear(hidden, head.weight, views.draft_ids, head.bias, views.count, rows)
        logits = vocab.raise_scores(sharpen(logits, temperature), token_ids)
        pos, score = best_children(logits, shape.branching)
        head_pos = views.draft_ids[pos]
        return head_pos if target_ids is None else target_ids[head_pos], score

    return children


def compile_headless_drafter(drafter: Drafter, shape: TreeShape, inner: str) -> CompiledTreeDrafter:
    """The same trees with the head deleted: constant logits over as many ids as a node has children."""
    assert isinstance(drafter, EagleDrafter), "refused when the decoder was made"

    def children(states: Tensor, token_ids: Tensor, level: int) -> tuple[Tensor, Tensor]:
        logits = torch.arange(shape.branching, dtype=torch.float32, device=states.device)
        return best_children(logits.expand(*states.shape[:2], -1), shape.branching)

    return CompiledTreeDrafter(drafter, shape, children, inner)


def refuse_uncompiled(drafter: Drafter, vocab: VocabSelector) -> None:
    """NotImplementedError for a drafter that is not EAGLE's, TypeError for a vocabulary that no graph can read."""
    if not isinstance(drafter, EagleDrafter):
        raise NotImplementedError(f"compile=True needs an EagleDrafter as drafter, got {type(drafter).__name__}")
    policy = _over_head(vocab)
    if not isinstance(policy, FullVocab | HasVocabularyViews):
        raise TypeError(
            f"vocab must have vocabulary_views() with compile=True, got {type(policy).__name__}, which has none"
        )


def _over_head(vocab: VocabSelector) -> VocabSelector:
    """The policy over rows of the draft's head."""
    vocab = policy_below(vocab)
    return vocab.policy if isinstance(vocab, ReducedVocab) else vocab
