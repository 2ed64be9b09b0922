"""Seconds of every stage of a decoding step, from the sizes of a pair and the numbers of a device.

A pass over n rows takes

    products     bytes of weights, each read once for all n rows, at the device's rate for n rows, and their outputs
    attention    n x cached tokens x width of the queries, or the bytes of the cache if that is more
    element-wise numbers written, per row
    calls        a constant per layer and per pass

and a draft level with K rows of the head adds D K weights and n K logits. Nothing here depends on V but the full
vocabulary's K and the target's own head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from nanospec.planning.device import Device
from nanospec.planning.model_sizes import BYTES_PER_WEIGHT, DraftSizes, ModelSizes, Product
from nanospec.tree_drafter import BLOCKED_WIDTH
from nanospec.tree_shape import TreeShape

NUM_TOP = 16  # suggestions of the target per node that a vocabulary takes
RANKED_BYTES = 12  # an id and its score, as one device tells the others


@dataclass(frozen=True)
class Setting:
    """How a pair is used.

    accept_length  tokens per step, which the drafter takes in at the next one
    num_shards     devices that share every matrix, caches and the head's rows: tensor parallel, vocabulary-sharded
    """

    tree: TreeShape
    context_length: int = 512
    batch_size: int = 1
    num_shards: int = 1
    accept_length: float = 4.0

    def validated(self) -> Setting:
        """Self, or ValueError naming the number that is out of range."""
        self.tree.validated()
        for name in ("context_length", "batch_size", "num_shards"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 1 <= self.accept_length <= self.tree.depth + 1:
            raise ValueError(
                f"accept_length must be between 1 and {self.tree.depth + 1}, the tree's depth and the bonus token, "
                f"got {self.accept_length:g}"
            )
        return self


class DraftRows(NamedTuple):
    """Rows of the head that a level scores. follows: they change with the context, and are each sequence's own; packed:
    they lie together."""

    num_rows: int
    follows: bool = False
    packed: bool = True


class StepCost(NamedTuple):
    """Seconds of one step; `level` is one level in the middle of the draft, and part of `draft`."""

    level: float
    draft: float
    verify: float
    vocabulary: float
    other: float

    @property
    def step(self) -> float:
        return self.draft + self.verify + self.vocabulary + self.other


class Pair(NamedTuple):
    """What runs where, and how."""

    device: Device
    target: ModelSizes
    draft: DraftSizes
    setting: Setting


def step_cost(pair: Pair, rows: DraftRows) -> StepCost:
    """Seconds of a step that drafts from these rows; num_rows 0: the head deleted. Raises as `check_pair`."""
    check_pair(pair)
    setting, overheads = pair.setting, pair.device.overheads
    vocabulary = 0.0
    if rows.follows:
        num_ids = setting.tree.num_nodes * (1 + NUM_TOP) * setting.batch_size
        copied = 2 * num_ids * pair.draft.body.hidden_size * BYTES_PER_WEIGHT if rows.packed else 0
        vocabulary = overheads.vocabulary + copied / pair.device.bytes_per_s
    kept = 2 * setting.accept_length * pair.target.num_layers * pair.target.cache_width * BYTES_PER_WEIGHT
    other = overheads.step + setting.batch_size * kept / setting.num_shards / pair.device.bytes_per_s
    return StepCost(level_seconds(pair, rows), draft_seconds(pair, rows), verify_seconds(pair), vocabulary, other)


def plain_seconds(pair: Pair) -> float:
    """Seconds of a token of plain decoding."""
    return _target_seconds(pair, 1) + pair.device.overheads.step


def verify_seconds(pair: Pair) -> float:
    """Seconds of the target's pass over the tree of every sequence."""
    return _target_seconds(pair, pair.setting.tree.num_nodes)


def draft_seconds(pair: Pair, rows: DraftRows) -> float:
    """Seconds of a draft: what was accepted is taken in, then the levels and the tree. The root is a single node."""
    tree, draft = pair.setting.tree, pair.draft
    accepted = pair.setting.batch_size * pair.setting.accept_length
    step_bytes = _step_bytes(pair, rows)
    seconds = pair.device.overheads.draft + pair.device.overheads.level
    seconds += sum(_product_seconds(pair, product, accepted, step_bytes) for product in draft.taking_in)
    if not draft.is_parallel:
        seconds += _body_seconds(pair, draft.body, accepted, step_bytes)
    seconds += head_seconds(pair, rows, 1)
    return seconds + (tree.depth - 1) * level_seconds(pair, rows)


def level_seconds(pair: Pair, rows: DraftRows) -> float:
    """Seconds of a level of `branching` nodes per sequence: body, head, best children, their place in the tree."""
    num_nodes = pair.setting.tree.branching
    seconds = pair.device.overheads.level + head_seconds(pair, rows, num_nodes)
    if pair.draft.is_parallel:
        return seconds
    loop_bytes = _level_bytes(pair, rows)
    return seconds + _body_seconds(pair, pair.draft.body, pair.setting.batch_size * num_nodes, loop_bytes)


def head_seconds(pair: Pair, rows: DraftRows, num_nodes: int) -> float:
    """Seconds of the head and the best children of so many nodes per sequence: product, log-softmax, top-k."""
    if rows.num_rows == 0:
        return 0.0
    device, batch = pair.device, pair.setting.batch_size
    num_sets = batch if rows.follows else 1  # of rows: each sequence has its own, or all share them
    columns = math.ceil(rows.num_rows / _shards(pair))
    num_bytes = num_sets * columns * pair.draft.body.hidden_size * BYTES_PER_WEIGHT
    num_outputs = num_sets * columns
    seconds = device.weight_s(num_bytes, num_outputs, batch * num_nodes / num_sets, _level_bytes(pair, rows))
    if not rows.packed:
        seconds += num_bytes * device.gather_s
    per_logit = device.wide_logit_s if columns >= BLOCKED_WIDTH else device.narrow_logit_s
    seconds += batch * num_nodes * columns * per_logit
    if _shards(pair) > 1:  # every device tells the others its best and its sum
        seconds += device.exchange(batch * num_nodes * _shards(pair) * pair.setting.tree.branching * RANKED_BYTES)
    return seconds


def floor_seconds(pair: Pair, rows: DraftRows) -> float:
    """Seconds of a step in which nothing counts but weights that are read once per pass, at the device's bandwidth.
    Only weights that a cache keeps from pass to pass can be faster."""
    tree, draft = pair.setting.tree, pair.draft
    level = draft.body.hidden_size * rows.num_rows + (0 if draft.is_parallel else draft.body.num_weights(1))
    weights = pair.target.num_weights(1) + pair.target.hidden_size * pair.target.num_ids
    weights += tree.depth * level + sum(product.num_weights(1) for product in draft.taking_in)
    return weights * BYTES_PER_WEIGHT / _shards(pair) / pair.device.stream_bytes_per_s


def check_pair(pair: Pair) -> None:
    """Raises ValueError for numbers out of range, a tree deeper than the draft can grow, and shards of a device that
    stands alone."""
    setting = pair.setting.validated()
    if pair.draft.max_depth is not None and setting.tree.depth > pair.draft.max_depth:
        raise ValueError(f"tree depth must be at most {pair.draft.max_depth} for this draft, got {setting.tree.depth}")
    if setting.num_shards > 1 and pair.device.exchange_s is None:
        raise ValueError(f"num_shards must be 1 on {pair.device.name}, which stands alone, got {setting.num_shards}")


def alone(pair: Pair) -> Pair:
    """The same pair on one device."""
    return pair._replace(setting=replace(pair.setting, num_shards=1))


def _target_seconds(pair: Pair, num_rows: int) -> float:
    device, target, rows = pair.device, pair.target, num_rows * pair.setting.batch_size
    head_bytes = target.hidden_size * target.num_ids * BYTES_PER_WEIGHT / _shards(pair)
    footprint = target.num_weights(rows) * BYTES_PER_WEIGHT / _shards(pair) + head_bytes
    seconds = _body_seconds(pair, target, rows, footprint) + device.overheads.target_pass
    seconds += target.num_layers * device.overheads.target_layer
    seconds += device.weight_s(head_bytes, target.num_ids / _shards(pair), rows, footprint)
    seconds += rows * math.ceil(target.num_ids / _shards(pair)) * device.best_logit_s
    if _shards(pair) > 1:
        seconds += device.exchange(rows * _shards(pair) * NUM_TOP * RANKED_BYTES)
    return seconds


def _body_seconds(pair: Pair, model: ModelSizes, num_rows: float, footprint: float) -> float:
    """Products, attention and element-wise work of all layers; calls apart, which differ."""
    device, shards, setting = pair.device, _shards(pair), pair.setting
    seconds = sum(_product_seconds(pair, product, num_rows, footprint) for product in model.products)
    context = model.num_layers * setting.context_length / shards
    cache_s = context * setting.batch_size * model.cache_width * BYTES_PER_WEIGHT / device.bytes_per_s
    per_sequence = device.attention.seconds(num_rows / setting.batch_size)
    seconds += max(cache_s, context * setting.batch_size * model.attention_width * per_sequence)
    seconds += num_rows * model.activations / shards * device.activation_s
    if pair.draft.is_eager and model is pair.draft.body:
        seconds += model.num_layers * device.overheads.target_layer
    if shards > 1:  # after attention and after the gated product
        seconds += 2 * model.num_layers * device.exchange(num_rows * model.hidden_size * BYTES_PER_WEIGHT)
    return seconds


def _product_seconds(pair: Pair, product: Product, num_rows: float, footprint: float) -> float:
    num_bytes = product.num_weights(num_rows) * BYTES_PER_WEIGHT / _shards(pair)
    num_outputs = product.num_outputs(num_rows) / _shards(pair)
    seconds = pair.device.weight_s(num_bytes, num_outputs, product.rows_per_weight(num_rows), footprint)
    return pair.device.layer_factor * seconds


def _level_bytes(pair: Pair, rows: DraftRows) -> float:
    """What one level reads, and the next one again."""
    num_sets = pair.setting.batch_size if rows.follows else 1
    weights: float = num_sets * rows.num_rows * pair.draft.body.hidden_size
    if not pair.draft.is_parallel:
        weights += pair.draft.body.num_weights(pair.setting.tree.branching)
    return weights * BYTES_PER_WEIGHT / _shards(pair)


def _step_bytes(pair: Pair, rows: DraftRows) -> float:
    """What lies between a weight's last use in one step and its first in the next."""
    target = pair.target.num_weights(1) + pair.target.hidden_size * pair.target.num_ids
    return _level_bytes(pair, rows) + target * BYTES_PER_WEIGHT / _shards(pair)


def _shards(pair: Pair) -> int:
    return pair.setting.num_shards
