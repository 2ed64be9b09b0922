"""A draft tree as one compiled graph: all levels of an EAGLE drafter, its head and the book-keeping between them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nanospec.draft_vocabulary import HasVocabularyViews
from nanospec.drafters.drafter import Drafter
from nanospec.drafters.eagle import EagleDrafter
from nanospec.graph_compiler import DRAFT_BACKEND, compile_apart, mark_growing
from nanospec.kv_cache import CacheRows
from nanospec.records import DraftTree, DraftVocab
from nanospec.tree_drafter import Children, best_children, grow_tree
from nanospec.tree_shape import TreeShape
from nanospec.vocab.full import FullVocab
from nanospec.vocab_selector import VocabSelector


class CompiledTreeDrafter:
    """`TreeDrafter` whose `draft` is one graph, the same for every context length.

    children: as in `grow_tree`; backend, options: as in torch.compile.
    """

    def __init__(
        self, drafter: EagleDrafter, shape: TreeShape, children: Children, backend: str, options: dict | None = None
    ) -> None:
        self.drafter, self.shape = drafter, shape.validated()
        num_levels_run = shape.depth - 1

        def draft_tree(root_id: Tensor, root_state: Tensor, buffer: Tensor, cos: Tensor, sin: Tensor) -> DraftTree:
            certain = cos.shape[0] - num_levels_run

            def advance(token_ids: Tensor, states: Tensor, depth: int, visible: Tensor) -> Tensor:
                rows = CacheRows(buffer, certain + visible.shape[-1] - token_ids.shape[1])
                angles = (cos[: certain + depth], sin[: certain + depth])
                return drafter.run_level(token_ids, states, visible, angles, rows)

            return grow_tree(shape, root_id, root_state, advance, children)

        self._draft_tree = compile_apart(draft_tree, backend, options)

    def draft(self, root_id: Tensor, root_state: Tensor, vocab: DraftVocab) -> DraftTree:
        """As `TreeDrafter.draft`; `vocab` is not read: the graph holds the vocabulary's own buffers."""
        cache, num_levels_run = self.drafter.cache, self.shape.depth - 1
        rows = cache.rows(num_levels_run * self.shape.branching)
        cos, sin = (mark_growing(table, 0) for table in self.drafter.angles(cache.length + num_levels_run))
        # Copies, because a view tells its parent's length by its strides, and that would be one graph per length.
        root_id, root_state = (x.clone(memory_format=torch.contiguous_format) for x in (root_id, root_state))
        return self._draft_tree(root_id, root_state, mark_growing(rows.buffer, 4), cos, sin)


def compile_tree_drafter(drafter: Drafter, shape: TreeShape, vocab: VocabSelector, inner: str) -> CompiledTreeDrafter:
    """Drafts over `vocab`: the graph scores all V ids, and backend "nanospec" makes that the vocabulary's.

    Over a `FullVocab` nothing is to be restricted: that is compiled by `inner` alone. Raises what `refuse_uncompiled`
    raises.
    """
    refuse_uncompiled(drafter, vocab)
    assert isinstance(drafter, EagleDrafter), "refused above"
    head, is_full = drafter.head, isinstance(vocab, FullVocab)

    def children(states: Tensor) -> tuple[Tensor, Tensor]:
        return best_children(F.linear(states, head.weight, head.bias), shape.branching, by_blocks=is_full)

    if is_full:
        return CompiledTreeDrafter(drafter, shape, children, inner)
    return CompiledTreeDrafter(drafter, shape, children, DRAFT_BACKEND, {"vocabulary": vocab, "inner": inner})


def compile_headless_drafter(drafter: Drafter, shape: TreeShape, inner: str) -> CompiledTreeDrafter:
    """The same trees with the head deleted: constant logits over as many ids as a node has children."""
    assert isinstance(drafter, EagleDrafter), "refused when the decoder was made"

    def children(states: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.arange(shape.branching, dtype=torch.float32, device=states.device)
        return best_children(logits.expand(*states.shape[:2], -1), shape.branching)

    return CompiledTreeDrafter(drafter, shape, children, inner)


def refuse_uncompiled(drafter: Drafter, vocab: VocabSelector) -> None:
    """NotImplementedError for a drafter that is not EAGLE's, TypeError for a vocabulary that no graph can read."""
    if not isinstance(drafter, EagleDrafter):
        raise NotImplementedError(f"compile=True needs an EagleDrafter as drafter, got {type(drafter).__name__}")
    if not isinstance(vocab, FullVocab | HasVocabularyViews):
        raise TypeError(
            f"vocab must have vocabulary_views() with compile=True, got {type(vocab).__name__}, which has none"
        )
