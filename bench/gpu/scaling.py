"""Section (e): draft time against the vocabulary V, the draft vocabulary K and the batch B."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from bench.gpu.draft_bed import (
    DraftBed,
    children_by_fused_head,
    children_by_head,
    in_context_children,
    random_draft_ids,
)
from bench.gpu.draft_section import FULL, HEADLESS, filled_vocab, update_pool
from bench.gpu.random_pair import free_memory, random_drafter, random_head
from bench.gpu.run_context import BenchRun, Figures, Part
from bench.gpu.timing import Call
from nanospec.drafters.eagle import EagleDrafter
from nanospec.tree_drafter import Children
from nanospec.vocab.full import FullVocab


def scaling_parts(_: BenchRun) -> list[Part]:
    return [
        Part("vocab_size", 40, measure_vocab_sizes),
        Part("draft_size", 30, measure_draft_sizes),
        Part("batch_size", 40, measure_batch_sizes),
    ]


@torch.inference_mode()
def measure_vocab_sizes(run: BenchRun) -> Figures:
    """Draft time over V, the in-context side with the upkeep of its vocabulary: {V: {side: figures}}.

    Every V sees the same ids, so that what differs is V alone.
    """
    largest, smallest = max(run.sizes.vocab_sizes), min(run.sizes.vocab_sizes)
    weight = _head(run, largest)
    pool = update_pool(run, smallest)
    sides: dict[tuple[int, str], Call] = {}
    for vocab_size in run.sizes.vocab_sizes:
        drafter = _drafter(run, weight[:vocab_size])
        bed = DraftBed(drafter, run.sizes.tree, run.sizes.context_length)
        full = children_by_head(drafter.head, FullVocab(drafter.head.weight).select(), bed.tree.branching)
        sides[vocab_size, FULL] = _repeated(partial(bed.draft, full), len(pool))
        sides[vocab_size, "in-context with upkeep"] = _draft_with_upkeep(run, bed, drafter, pool)
    return _timed(run, sides, per=len(pool))


@torch.inference_mode()
def measure_draft_sizes(run: BenchRun) -> Figures:
    """Draft time over K, beside the full vocabulary and the head deleted: {K: {side: figures}}."""
    drafter = _drafter(run, _head(run, run.sizes.pairs[run.sizes.scaling_pair].vocab_size))
    bed = DraftBed(drafter, run.sizes.tree, run.sizes.context_length)
    vocab_size = drafter.head.weight.shape[0]
    sides: dict[tuple[int, str], Call] = {}
    for draft_size in run.sizes.draft_sizes:
        draft_ids = random_draft_ids(vocab_size, draft_size, 1, run.device)
        for name, children in in_context_children(drafter.head, draft_ids, bed.tree.branching).items():
            sides[draft_size, name] = partial(bed.draft, children)
    sides[0, HEADLESS] = partial(bed.draft, bed.headless())
    full = children_by_head(drafter.head, FullVocab(drafter.head.weight).select(), bed.tree.branching)
    sides[vocab_size, FULL] = partial(bed.draft, full)
    return _timed(run, sides)


@torch.inference_mode()
def measure_batch_sizes(run: BenchRun) -> Figures:
    """Draft time over B, every sequence with ids of its own: {B: {side: figures}}."""
    drafter = _drafter(run, _head(run, run.sizes.pairs[run.sizes.scaling_pair].vocab_size))
    vocab_size = drafter.head.weight.shape[0]
    sides: dict[tuple[int, str], Call] = {}
    for batch_size in run.sizes.batch_sizes:
        bed = DraftBed(drafter, run.sizes.tree, run.sizes.context_length, batch_size)
        draft_ids = random_draft_ids(vocab_size, run.sizes.draft_size, batch_size, run.device)
        ways: dict[str, Children] = {
            FULL: children_by_head(drafter.head, FullVocab(drafter.head.weight).select(), bed.tree.branching),
            **in_context_children(drafter.head, draft_ids, bed.tree.branching),
            HEADLESS: bed.headless(),
        }
        for name, children in ways.items():
            sides[batch_size, name] = partial(bed.draft, children)
    return _timed(run, sides)


def _draft_with_upkeep(run: BenchRun, bed: DraftBed, drafter: EagleDrafter, pool: list[Tensor]) -> Call:
    vocab = filled_vocab(run, drafter.head.weight, packed=False)
    children = children_by_fused_head(drafter.head, vocab.select(), bed.tree.branching)

    def steps() -> None:
        for ids in pool:
            bed.draft(children)
            vocab.observe(ids)

    return steps


def _repeated(call: Call, times: int) -> Call:
    return lambda: [call() for _ in range(times)]


def _head(run: BenchRun, vocab_size: int) -> Tensor:
    return random_head(vocab_size, run.sizes.pairs[run.sizes.scaling_pair].hidden_size, run.device, run.dtype)


def _drafter(run: BenchRun, weight: Tensor) -> EagleDrafter:
    torch.manual_seed(0)
    return random_drafter(run.sizes.pairs[run.sizes.scaling_pair], nn.Embedding.from_pretrained(weight), weight)


def _timed(run: BenchRun, sides: dict[tuple[int, str], Call], per: int = 1) -> Figures:
    """{size: {side: figures}}; a side does `per` drafts in one call."""
    named = {f"{size}/{name}": call for (size, name), call in sides.items()}
    times = run.time_replays(named)
    figures: Figures = {}
    for key, quartiles in times.items():
        size, _, name = key.partition("/")
        figures.setdefault(size, {})[name] = quartiles.divided_by(per).as_json()
    free_memory(run.device)
    return figures
