"""Draft time against V, K, batch and context length, measured and predicted."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.gpu.draft_bed import DraftBed, random_draft_ids
from bench.gpu.timing import Call, time_sides
from bench.real_shapes.pair import CPU, RandomPair, cached_drafter, children_over, random_rows
from bench.real_shapes.sizes import FULL, HEADLESS, HYBRID, RealSizes
from bench.real_shapes.stages import ONE_CALL, beside
from nanospec.coverage.pareto_plot import COLOURS, MARKERS, new_figure, save_figure
from nanospec.drafters.eagle import EagleDrafter
from nanospec.planning.device import Device
from nanospec.planning.step_cost import DraftRows, Pair, draft_seconds
from nanospec.records import DraftVocab
from nanospec.tree_shape import TreeShape
from nanospec.vocab.full import FullVocab

AXES = {
    "vocab_size": "vocabulary V",
    "draft_size": "rows of the draft vocabulary K",
    "batch_size": "sequences in a batch",
    "context_length": "tokens in the context",
}
Growth = dict[str, dict[str, dict[str, Any]]]  # size -> side -> times and prediction


class Sweep:
    """Drafts of one shape with random weights, swept one size at a time."""

    def __init__(self, pair: RandomPair, sizes: RealSizes, tree: TreeShape, device: Device) -> None:
        self.pair, self.sizes, self.tree, self.device = pair, sizes, tree, device

    @torch.inference_mode()
    def vocab_sizes(self) -> Growth:
        """All see the same ids: V alone differs."""
        largest, smallest = max(self.sizes.vocab_sizes), min(self.sizes.vocab_sizes)
        weight = random_rows(largest, self.pair.size.hidden_size)
        drafter = cached_drafter(self.pair.size, weight)  # its embedding knows the ids of every V
        ids = random_draft_ids(smallest, min(self.sizes.typical_rows, smallest), 1, CPU)
        sides: dict[tuple[int, str], tuple[Call, float]] = {}
        for vocab_size in self.sizes.vocab_sizes:
            sides |= self._sides(vocab_size, weight[:vocab_size], ids, vocab_size, drafter=drafter)
        return self._timed(sides)

    @torch.inference_mode()
    def draft_sizes(self) -> Growth:
        weight = self.pair.target.head_weight
        sides: dict[tuple[int, str], tuple[Call, float]] = {}
        for draft_size in self.sizes.draft_sizes:
            both = self._sides(
                draft_size, weight, random_draft_ids(weight.shape[0], draft_size, 1, CPU), weight.shape[0]
            )
            sides |= {key: side for key, side in both.items() if key[1] != FULL}
        return self._timed(sides)

    @torch.inference_mode()
    def batch_sizes(self) -> Growth:
        """Every sequence has rows of its own."""
        weight = self.pair.target.head_weight
        sides: dict[tuple[int, str], tuple[Call, float]] = {}
        for batch_size in self.sizes.batch_sizes:
            ids = random_draft_ids(weight.shape[0], self.sizes.typical_rows, batch_size, CPU)
            sides |= self._sides(batch_size, weight, ids, weight.shape[0], batch_size=batch_size)
        return self._timed(sides)

    @torch.inference_mode()
    def context_lengths(self) -> Growth:
        weight = self.pair.target.head_weight
        ids = random_draft_ids(weight.shape[0], self.sizes.typical_rows, 1, CPU)
        sides: dict[tuple[int, str], tuple[Call, float]] = {}
        for context_length in self.sizes.context_lengths:
            sides |= self._sides(context_length, weight, ids, weight.shape[0], context_length=context_length)
        return self._timed(sides)

    def _sides(
        self,
        key: int,
        weight: Tensor,
        ids: Tensor,
        num_ids: int,
        batch_size: int = 1,
        context_length: int | None = None,
        drafter: EagleDrafter | None = None,
    ) -> dict[tuple[int, str], tuple[Call, float]]:
        """Full, hybrid over `ids` int64 [B, K], and no head: each with its prediction."""
        context_length = context_length or self.sizes.context_length
        bed = DraftBed(drafter or self.pair.drafter, self.tree, context_length, batch_size)
        rows = weight.index_select(0, ids.flatten()).unflatten(0, ids.shape)
        count = torch.full(ids.shape[:1], ids.shape[1], dtype=torch.int32)
        calls: dict[str, Call] = {
            FULL: partial(bed.draft, children_over(bed, FullVocab(weight).select())),
            HYBRID: partial(bed.draft, children_over(bed, DraftVocab(ids, count, rows))),
            HEADLESS: partial(bed.draft, bed.headless()),
        }
        pair = self.pair.expected_on(self.device, self.tree, context_length, batch_size)
        pair = Pair(pair.device, pair.target.with_num_ids(num_ids), pair.draft.with_num_ids(num_ids), pair.setting)
        scored = {FULL: DraftRows(num_ids), HYBRID: DraftRows(ids.shape[1], follows=True), HEADLESS: DraftRows(0)}
        return {(key, name): (call, draft_seconds(pair, scored[name])) for name, call in calls.items()}

    def _timed(self, sides: dict[tuple[int, str], tuple[Call, float]]) -> Growth:
        named = {f"{size}/{name}": call for (size, name), (call, _) in sides.items()}
        times = time_sides(named, CPU, max(2, self.sizes.rounds // 2), ONE_CALL, in_a_row=True)
        growth: Growth = {}
        for (size, name), (_, predicted) in sides.items():
            growth.setdefault(str(size), {})[name] = beside(times[f"{size}/{name}"], predicted)
        return growth


def draw_growth(out: Path, name: str, growth: Growth) -> list[str]:
    """Measured points with their quartiles, predictions as lines; SVG and PNG. Returns their names."""
    figure = new_figure()
    axes = figure.add_subplot()
    sides = dict.fromkeys(side for row in growth.values() for side in row)
    for place, side in enumerate(sides):
        sizes = [int(size) for size in growth if side in growth[size]]
        rows = [growth[str(size)][side] for size in sizes]
        medians = [row["median_ms"] for row in rows]
        errors = (
            [row["median_ms"] - row["lower_quartile_ms"] for row in rows],
            [row["upper_quartile_ms"] - row["median_ms"] for row in rows],
        )
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        axes.errorbar(sizes, medians, yerr=errors, label=side, color=colour, marker=marker, linestyle="none", capsize=2)
        axes.plot(
            sizes, [row["predicted_ms"] for row in rows], color=colour, linestyle="--", label=f"{side}, predicted"
        )
    axes.set(xlabel=AXES[name], ylabel="draft, ms (median, quartiles)", xscale="log", yscale="log")
    axes.set_xticks([int(size) for size in growth], [f"{int(size):,}" for size in growth])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper", fontsize=9, frameon=False)
    names = [f"draft_by_{name}{suffix}" for suffix in (".svg", ".png")]
    for file in names:
        save_figure(figure, out / file)
    return names
