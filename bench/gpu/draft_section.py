"""Section (c): a draft level and a whole draft, over the full vocabulary, a static one, and K ids in every way."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from bench.gpu.draft_bed import DraftBed, children_by_head, in_context_children, random_draft_ids
from bench.gpu.random_pair import free_memory, random_drafter, random_head
from bench.gpu.run_context import BenchRun, Figures, Part, with_ratios
from bench.gpu.sizes import PairSize
from bench.gpu.timing import Call
from nanospec.acceptance import accept_greedy
from nanospec.gathered_head import GatheredHead
from nanospec.kv_cache import KVCache
from nanospec.tree_drafter import Children
from nanospec.vocab.full import FullVocab
from nanospec.vocab.in_context import InContextVocab
from nanospec.vocab.static import StaticVocab

FULL, STATIC, HEADLESS = "full", "static", "head deleted"
UPDATE, PACKED_UPDATE = "vocabulary update", "vocabulary update, rows copied"


def draft_parts(run: BenchRun) -> list[Part]:
    return [Part(size.name, 25, partial(measure_draft, size=size)) for size in run.sizes.pairs]


@torch.inference_mode()
def measure_draft(run: BenchRun, size: PairSize) -> Figures:
    """A level and a draft of every side, and what a step does beside the passes of its two models."""
    weight = random_head(size.vocab_size, size.hidden_size, run.device, run.dtype)
    drafter = random_drafter(size, nn.Embedding.from_pretrained(weight), weight)
    bed = DraftBed(drafter, run.sizes.tree, run.sizes.context_length)
    sides = draft_children(run, bed, drafter.head)
    levels = run.time_replays({name: bed.level(children) for name, children in sides.items()})
    drafts = run.time_replays({name: partial(bed.draft, children) for name, children in sides.items()})
    figures = {
        "level": with_ratios(levels, HEADLESS),
        "draft": with_ratios(drafts, FULL),
        "upkeep": measure_upkeep(run, size, bed, weight),
    }
    del weight, drafter, bed, sides
    free_memory(run.device)
    return figures


def draft_children(run: BenchRun, bed: DraftBed, head: GatheredHead) -> dict[str, Children]:
    """The children of every side by name."""
    vocab_size, branching = head.weight.shape[0], bed.tree.branching
    draft_ids = random_draft_ids(vocab_size, run.sizes.draft_size, 1, run.device)
    static_ids = torch.randperm(vocab_size, device=run.device)[: run.sizes.static_size]
    return {
        FULL: children_by_head(head, FullVocab(head.weight).select(), branching),
        STATIC: children_by_head(head, StaticVocab(head.weight, static_ids).select(), branching),
        **in_context_children(head, draft_ids, branching),
        HEADLESS: bed.headless(),
    }


def measure_upkeep(run: BenchRun, size: PairSize, bed: DraftBed, weight: Tensor) -> Figures:
    """Per step: vocabulary update, with and without its row copies, the tree's own work, acceptance, compaction."""
    pool = update_pool(run, size.vocab_size)
    indexed = filled_vocab(run, weight, packed=False)
    packed = filled_vocab(run, weight, packed=True)
    tree = bed.bookkeeping()
    best_id = tree.token_ids.roll(-1, 1)
    cache = KVCache(size.num_layers, size.num_kv_heads, size.head_dim, run.dtype, run.device)
    cache.reset(run.sizes.context_length + run.sizes.tree.num_nodes)
    length = torch.full((1,), run.sizes.context_length, device=run.device)
    accepted_pos = torch.arange(run.sizes.tree.depth + 1, device=run.device)
    sides: dict[str, Call] = {
        UPDATE: partial(_observe_all, indexed, pool),
        PACKED_UPDATE: partial(_observe_all, packed, pool),
        "tree": bed.bookkeeping,
        "accept": lambda: accept_greedy(tree, best_id, run.sizes.tree.depth),
        "compact": lambda: cache.compact_behind(length, accepted_pos),
    }
    times = run.time_replays(sides)
    times |= {name: times[name].divided_by(len(pool)) for name in (UPDATE, PACKED_UPDATE)}
    return {name: quartiles.as_json() for name, quartiles in times.items()}


def _observe_all(vocab: InContextVocab, pool: list[Tensor]) -> None:
    for ids in pool:
        vocab.observe(ids)


def upkeep_us(upkeep: Figures) -> float:
    """Vocabulary update without row copies, tree and acceptance of one step, in microseconds."""
    return sum(upkeep[name]["median_us"] for name in (UPDATE, "tree", "accept"))


def filled_vocab(run: BenchRun, weight: Tensor, packed: bool) -> InContextVocab:
    """A vocabulary whose K slots are all in use."""
    vocab = InContextVocab(weight, run.sizes.draft_size, packed=packed)
    vocab.observe(torch.randperm(weight.shape[0], device=run.device)[None, : run.sizes.draft_size])
    return vocab


def update_pool(run: BenchRun, vocab_size: int) -> list[Tensor]:
    """Ids int64 [1, n] of several steps: the nodes of a tree and the target's suggestions at each.

    Squared uniform numbers: small ids come often, so that most of a step is seen already, as in text.
    """
    num_ids = run.sizes.tree.num_nodes * (1 + run.sizes.num_top)
    share = torch.rand(run.sizes.num_updates, 1, num_ids, device=run.device).square()
    return list((share * (vocab_size // 4)).long())
