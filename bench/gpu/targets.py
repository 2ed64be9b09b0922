"""What is aimed for on an H200, bf16, batch 1, depth 6, branching 10, 60 nodes, and what was measured."""

from __future__ import annotations

from typing import Any, NamedTuple

from bench.gpu.draft_section import FULL, HEADLESS, upkeep_us
from bench.gpu.steps import EAGER, GRAPH

SMALLEST_VOCAB, LARGEST_VOCAB = "32768", "262144"
IN_CONTEXT_WAYS = ("indexed fused", "indexed", "packed")
Sections = dict[str, dict[str, Any]]


class Target(NamedTuple):
    """value: None where it was not measured; at_most: whether `limit` bounds from above."""

    name: str
    limit: float
    at_most: bool
    value: float | None
    how: str

    @property
    def verdict(self) -> str:
        """ "met", "missed by 1.23x", or "not measured"."""
        if self.value is None:
            return "not measured"
        factor = self.value / self.limit if self.at_most else self.limit / self.value
        return "met" if factor <= 1 else f"missed by {factor:.2f}x"

    def as_json(self) -> dict[str, Any]:
        bound = "at_most" if self.at_most else "at_least"
        value = None if self.value is None else round(self.value, 4)
        return {"name": self.name, bound: self.limit, "value": value, "verdict": self.verdict, "how": self.how}


def judge_targets(sections: Sections) -> list[Target]:
    """Every target with the figure that belongs to it."""
    targets = []
    for pair, limit in (("llama-3.1-8b", 0.38), ("llama-3.2-1b", 0.28)):
        value, way = _draft_ratio(sections, pair, "draft", FULL)
        targets.append(Target(f"draft time in-context / full, {pair}", limit, True, value, way))
    for pair in ("llama-3.1-8b", "llama-3.2-1b", "qwen2-7b"):
        value, way = _draft_ratio(sections, pair, "level", HEADLESS)
        targets.append(Target(f"draft level in-context / head deleted, {pair}", 1.10, True, value, way))
    for pair, limit in (("llama-3.1-8b", 1.30), ("llama-3.2-1b", 1.70)):
        value, way = _step_ratio(sections, pair)
        targets.append(Target(f"step full / in-context, {pair}", limit, False, value, way))
    for pair in ("llama-3.1-8b", "llama-3.2-1b"):
        value, way = _upkeep_share(sections, pair)
        targets.append(Target(f"vocabulary upkeep + tree + accept, share of step, {pair}", 0.05, True, value, way))
    value = _vocab_growth(sections)
    targets.append(Target("in-context draft + upkeep, V 256k / V 32k", 1.05, True, value, "scaling section"))
    return targets


def _draft_ratio(sections: Sections, pair: str, what: str, baseline: str) -> tuple[float | None, str]:
    """The fastest in-context way as a ratio to the baseline, and its name."""
    sides = sections["draft"].get(pair, {}).get(what)
    if sides is None:
        return None, ""
    best = min(IN_CONTEXT_WAYS, key=lambda way: sides[way]["median_us"])
    return sides[best]["median_us"] / sides[baseline]["median_us"], best


def _step(sections: Sections, pair: str, vocab: str) -> tuple[float | None, str]:
    sides = sections["step"].get(pair, {})
    for mode in (GRAPH, EAGER):
        if f"{vocab}, {mode}" in sides:
            return sides[f"{vocab}, {mode}"]["median_us"], mode
    return None, ""


def _step_ratio(sections: Sections, pair: str) -> tuple[float | None, str]:
    full, mode = _step(sections, pair, "full")
    in_context, _ = _step(sections, pair, "in-context")
    return (None, "") if full is None or in_context is None else (full / in_context, mode)


def _upkeep_share(sections: Sections, pair: str) -> tuple[float | None, str]:
    upkeep = sections["draft"].get(pair, {}).get("upkeep")
    step, mode = _step(sections, pair, "in-context")
    return (None, "") if upkeep is None or step is None else (upkeep_us(upkeep) / step, mode)


def _vocab_growth(sections: Sections) -> float | None:
    sides = sections["scaling"].get("vocab_size", {})
    if SMALLEST_VOCAB not in sides or LARGEST_VOCAB not in sides:
        return None
    small, large = (sides[size]["in-context with upkeep"]["median_us"] for size in (SMALLEST_VOCAB, LARGEST_VOCAB))
    return large / small
