"""A random pair of real size, its draft vocabularies, and what the cost model expects of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bench.gpu.draft_bed import DraftBed
from bench.gpu.random_pair import random_drafter, tiled_target
from bench.gpu.sizes import PairSize
from bench.real_shapes.sizes import FULL, HEADLESS, HYBRID, SATURATED, RealSizes
from nanospec.checkpoints.detect import Family
from nanospec.decode import GREEDY_DRAFT_TEMPERATURE
from nanospec.drafters.eagle import EagleDrafter
from nanospec.planning.device import Device
from nanospec.planning.model_sizes import DraftSizes, ModelSizes
from nanospec.planning.read_sizes import eagle_sizes, model_sizes
from nanospec.planning.step_cost import DraftRows, Pair, Setting
from nanospec.records import DraftVocab
from nanospec.speculation import WIDTH_MULTIPLE
from nanospec.target import Target
from nanospec.tree_drafter import Children, children_of
from nanospec.tree_shape import TreeShape
from nanospec.vocab.in_context import InContextVocab
from nanospec.vocab_selector import VocabSelector, build_vocab_selector

CPU, DTYPE = torch.device("cpu"), torch.bfloat16


@dataclass(frozen=True)
class RandomPair:
    """The modules, and their sizes as a plan counts them."""

    size: PairSize
    target: Target
    drafter: EagleDrafter
    target_sizes: ModelSizes
    draft_sizes: DraftSizes

    @classmethod
    def of(cls, size: PairSize) -> RandomPair:
        target = tiled_target(size, CPU, DTYPE)
        drafter = random_drafter(size, target.embed_tokens, target.head_weight)
        sizes = model_sizes(target.model)
        return cls(size, target, drafter, sizes, eagle_sizes(Family.EAGLE, drafter.shape, sizes, sizes.num_ids))

    def expected_on(self, device: Device, tree: TreeShape, context_length: int, batch_size: int = 1) -> Pair:
        """For `step_cost`, as a `DraftBed` drafts: the whole path is taken in."""
        setting = Setting(tree, context_length, batch_size, accept_length=tree.depth + 1)
        return Pair(device, self.target_sizes, self.draft_sizes, setting)


def taking_in(pair: Pair, num_tokens: float) -> Pair:
    """The same pair where a step takes in so many tokens."""
    return pair._replace(setting=replace(pair.setting, accept_length=num_tokens))


def rows_of_sides(sizes: RealSizes, num_ids: int) -> dict[str, DraftRows]:
    """What every side scores, by name; the head deleted scores nothing."""
    static = f"static-{sizes.static_size}"
    return {
        FULL: DraftRows(num_ids),
        static: DraftRows(sizes.static_size),
        SATURATED: DraftRows(sizes.capacity, follows=True),
        HYBRID: DraftRows(sizes.typical_rows, follows=True),
        HEADLESS: DraftRows(0),
    }


def vocabularies(sizes: RealSizes, weight: Tensor) -> dict[str, VocabSelector]:
    """The policies of all sides with a head, over `weight` [V, D], with all slots used; the typical one has as many
    columns without an id as rounding leaves on average."""
    frequent_ids = torch.arange(weight.shape[0])
    built: dict[str, VocabSelector] = {}
    for name, rows in rows_of_sides(sizes, weight.shape[0]).items():
        if name == HEADLESS:
            continue
        spec = f"hybrid:{sizes.num_pinned}" if rows.follows else name.replace("-", ":")
        built[name] = build_vocab_selector(spec, weight, rows.num_rows, frequent_ids=frequent_ids)
        if isinstance(built[name], InContextVocab):
            num_unused = WIDTH_MULTIPLE // 2 if name == HYBRID and rows.num_rows > WIDTH_MULTIPLE else 0
            fill(built[name], rows.num_rows - num_unused)
    return built


def fill(vocab: InContextVocab, num_active: int) -> None:
    """So many ids, the pinned ones among them."""
    num_pinned, num_ids = vocab.tracker.pinned_ids.shape[0], vocab.head_weight.shape[0]
    vocab.observe(torch.randperm(num_ids - num_pinned)[None, : num_active - num_pinned] + num_pinned)


def children_by_side(bed: DraftBed, vocabs: Mapping[str, VocabSelector]) -> dict[str, Children]:
    """The decoder's own head, temperature and search over each vocabulary, and the head deleted."""
    sides: dict[str, Children] = {name: children_over(bed, vocab.select()) for name, vocab in vocabs.items()}
    return {**sides, HEADLESS: bed.headless()}


def children_over(bed: DraftBed, vocab: DraftVocab) -> Children:
    def children(states: Tensor, token_ids: Tensor, level: int) -> tuple[Tensor, Tensor]:
        branching = bed.tree.branching
        return children_of(bed.drafter, states, token_ids, vocab, branching, GREEDY_DRAFT_TEMPERATURE, level)

    return children


def cached_drafter(size: PairSize, weight: Tensor) -> EagleDrafter:
    """A drafter over a head [V, D] that stands alone."""
    torch.manual_seed(0)
    return random_drafter(size, nn.Embedding.from_pretrained(weight), weight)


def random_rows(vocab_size: int, hidden_size: int, rows_at_once: int = 65_536) -> Tensor:
    """[V, D], drawn in parts that repeat: what is read matters, not what it says."""
    part = torch.randn(min(rows_at_once, vocab_size), hidden_size, dtype=DTYPE).mul_(hidden_size**-0.5)
    weight = torch.empty(vocab_size, hidden_size, dtype=DTYPE)
    for rows in weight.split(rows_at_once):
        rows.copy_(part[: rows.shape[0]])
    return weight
