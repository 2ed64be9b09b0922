"""Which way a decoder's drafter grows its trees: alone, joined with prompt lookup, static, compiled, or headless."""

from __future__ import annotations

import torch

from nanospec.compiled_drafter import CompiledTreeDrafter, compile_headless_drafter, compile_tree_drafter
from nanospec.drafters.drafter import Drafter
from nanospec.drafters.joined_drafter import JoinedDrafter, JoinedTreeDrafter
from nanospec.drafters.prompt_lookup import LookupTreeDrafter, PromptLookupDrafter
from nanospec.headless import headless_drafter
from nanospec.static_tree import StaticTree
from nanospec.static_tree_drafter import StaticTreeDrafter
from nanospec.tree_drafter import TreeDrafter, TreeGrower
from nanospec.tree_shape import TreeShape
from nanospec.vocab_selector import VocabSelector


def model_of(drafter: Drafter) -> Drafter:
    """The drafter itself, or the model that prompt lookup is joined with."""
    return drafter.model if isinstance(drafter, JoinedDrafter) else drafter


class TreeGrowers:
    """Growers of one drafter over one vocabulary by tree shape; compiled ones are kept, each with its graph.

    inner        the backend that compiles them, None for eager ones
    static_tree  grown in place of a dynamic tree wherever its shape is asked for
    """

    def __init__(
        self,
        drafter: Drafter,
        vocab: VocabSelector,
        inner: str | None,
        static_tree: StaticTree | None,
        device: torch.device,
    ) -> None:
        self.drafter, self.vocab, self.inner = drafter, vocab, inner
        self.static_tree, self.device = static_tree, device
        self._compiled: dict[tuple[TreeShape, float, bool], CompiledTreeDrafter] = {}

    def grower(self, shape: TreeShape, temperature: float = 1.0, headless: bool = False) -> TreeGrower:
        """For trees of `shape`; headless: with the head deleted, for measurements."""
        if self.inner is None:
            return self._eager(shape, temperature, headless)
        key = (shape, temperature, headless)
        if key not in self._compiled:
            if headless:
                compiled = compile_headless_drafter(self.drafter, shape, self.inner)
            else:
                compiled = compile_tree_drafter(self.drafter, shape, self.vocab, self.inner, temperature)
            self._compiled[key] = compiled
        return self._compiled[key]

    def _eager(self, shape: TreeShape, temperature: float, headless: bool) -> TreeGrower:
        drafter, device = self.drafter, self.device
        if isinstance(drafter, PromptLookupDrafter):
            return LookupTreeDrafter(drafter, shape)
        model = model_of(drafter)
        model = headless_drafter(model, shape, device) if headless else model
        grower: TreeGrower = TreeDrafter(model, shape, temperature)
        if self.static_tree is not None and shape == self.static_tree.shape:
            grower = StaticTreeDrafter(model, self.static_tree, device, temperature)
        return JoinedTreeDrafter(drafter, grower) if isinstance(drafter, JoinedDrafter) and not headless else grower
