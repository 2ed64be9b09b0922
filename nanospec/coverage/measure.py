"""What each policy's vocabulary holds and its tree is worth behind one context: one speculative step each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nanospec.acceptance import accept_greedy
from nanospec.coverage.policy import PolicyProbe
from nanospec.coverage.shared_pass import SharedContext, drafter_state
from nanospec.drafters.drafter import Drafter
from nanospec.records import DraftTree, DraftVocab, Observation
from nanospec.speculation import WIDTH_MULTIPLE
from nanospec.target import Target
from nanospec.tree_shape import TreeShape


class Measurement(NamedTuple):
    """One policy behind one context.

    accept      tokens that a target pass yields, bonus token included
    rows        active ids when the tree is grown
    covered     per depth: 1 where the target's own token there is in the vocabulary
    held_top1   along the first choices of the full drafter's tree: 1 where the id is in the vocabulary
    held_nodes  nodes of the full drafter's tree whose id is, of num_nodes without the root
    draft_ms, learn_ms  wall time of the draft and of an update as large as a step's, None where not timed
    """

    accept: int
    rows: int
    covered: list[int]
    held_top1: list[int]
    held_nodes: int
    num_nodes: int
    draft_ms: float | None = None
    learn_ms: float | None = None


class ContextMeasurement(NamedTuple):
    """All policies behind one context, the baseline first; verify_ms: the target's pass over the baseline's tree."""

    policies: list[Measurement]
    verify_ms: float | None


class Timer:
    """Wall milliseconds of a call, the device synchronised around it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, function: Callable[[], Any]) -> tuple[Any, float]:
        self._synchronize()
        began = time.perf_counter()
        result = function()
        self._synchronize()
        return result, 1000 * (time.perf_counter() - began)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@torch.inference_mode()
def measure_context(
    target: Target,
    drafter: Drafter,
    context: SharedContext,
    tree: TreeShape,
    probes: Sequence[PolicyProbe],
    timer: Timer | None = None,
) -> ContextMeasurement:
    """Every policy behind one context, the baseline first in `probes`; timed where there is a timer, which takes the
    rows of the context in the target's cache for granted."""
    state = drafter_state(drafter, context, tree)
    measurements: list[Measurement] = []
    wanted, verify_ms = None, None
    for probe in probes:
        probe.begin(context.observation)
        rows = probe.num_rows()
        width = max(-(-rows // WIDTH_MULTIPLE) * WIDTH_MULTIPLE, tree.branching)  # as a decoding loop reads it
        (drafted, vocabs), draft_ms = _timed(timer, partial(probe.draft, context.root_id, state, width))
        if wanted is None:
            wanted = WantedIds.of(context.continuation, drafted)
            verify_ms = _timed(timer, partial(target.judge, drafted, probe.num_top))[1] if timer else None
        held = wanted.held_by(vocabs, target.vocab_size)
        accept = accept_length(drafted, context.continuation)
        step = step_sized(context.observation, tree.num_nodes)
        learn_ms = _timed(timer, partial(probe.learn, step))[1] if timer else None
        measurements.append(Measurement(accept, rows, *held, draft_ms=draft_ms, learn_ms=learn_ms))
    return ContextMeasurement(measurements, verify_ms)


def accept_length(tree: DraftTree, continuation: Tensor) -> int:
    """Tokens of a step whose target says `continuation` int64 [depth] after the root, bonus token included.

    Verification accepts the longest path whose nodes carry the target's own token after their parent. Along that path
    these are the continuation's; what they are elsewhere is no matter.
    """
    own_id = torch.nn.functional.pad(continuation, (0, 1), value=-1)  # after the deepest node: beyond any path
    return int(accept_greedy(tree, own_id[tree.depth], continuation.shape[0]).num_accepted)


def first_choices(tree: DraftTree) -> list[int]:
    """Token ids down the tree from the root: its best child, that one's best child, and so on."""
    parents, scores, ids = tree.parent_pos[0].tolist(), tree.score[0].tolist(), tree.token_ids[0].tolist()
    node, chain = 0, []
    while children := [child for child in range(1, len(ids)) if parents[child] == node and ids[child] >= 0]:
        node = max(children, key=scores.__getitem__)
        chain.append(ids[node])
    return chain


def step_sized(observation: Observation, num_nodes: int) -> Observation:
    """An observation as large as that of a step over a tree of `num_nodes`, made of the last tokens of the text."""
    length = observation.token_ids.shape[1]
    place = torch.arange(length - num_nodes, length, device=observation.token_ids.device) % length
    return Observation(*(part.index_select(1, place) for part in observation))


class WantedIds(NamedTuple):
    """Ids whose place in a vocabulary is asked for, int64 [depth + chain + nodes], -1: none; the level of the tree that
    each is drafted after, 0 for the root's children, of the same shape."""

    ids: Tensor
    levels: Tensor
    depth: int
    chain: int

    @classmethod
    def of(cls, continuation: Tensor, full_tree: DraftTree) -> WantedIds:
        nodes, chain = full_tree.token_ids[0, 1:], continuation.new_tensor(first_choices(full_tree))
        depth = torch.arange(continuation.shape[0], device=continuation.device)
        levels = torch.cat((depth, depth[: chain.shape[0]], full_tree.depth[0, 1:] - 1))
        return cls(torch.cat((continuation, chain, nodes)), levels, continuation.shape[0], chain.shape[0])

    def held_by(self, vocabs: Sequence[DraftVocab], vocab_size: int) -> tuple[list[int], list[int], int, int]:
        """covered, held_top1, held_nodes, num_nodes of a `Measurement`, by one vocabulary, or one per level."""
        shape = (len(vocabs), vocab_size + 1)  # the last column: of "none"
        is_active = torch.zeros(shape, dtype=torch.int64, device=self.ids.device)
        for flags, vocab in zip(is_active, vocabs, strict=True):
            flags[vocab.draft_ids[0, : int(vocab.count.max())]] = 1
        held = is_active[self.levels.clamp(0, len(vocabs) - 1), self.ids].tolist()
        covered, chain = held[: self.depth], held[self.depth : self.depth + self.chain]
        nodes = slice(self.depth + self.chain, None)
        return covered, chain, sum(held[nodes]), int((self.ids[nodes] >= 0).sum())


def _timed(timer: Timer | None, function: Callable[[], Any]) -> tuple[Any, float | None]:
    return (function(), None) if timer is None else timer(function)
