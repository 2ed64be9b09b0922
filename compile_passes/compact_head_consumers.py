"""Compute what follows a restricted head over K draft ids: no tensor of width V is made where nobody needs one."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx

from compile_passes.compact_logits import compact_argmax, compact_max, compact_topk, scatter_to_vocabulary
from compile_passes.graph_edits import insert_call, insert_like, replace_node
from compile_passes.node_queries import (
    argument,
    find_example_tensor,
    is_in_place,
    is_last_dim,
    op_name,
    require_example_tensor,
)
from compile_passes.row_operations import insert_on_compact, is_cast, is_positive_scaling, is_row_choice

log = logging.getLogger(__name__)
_FRESH_RESULTS = frozenset("argmax max amax topk softmax log_softmax mul div tanh clone".split())


class _WideParts(NamedTuple):
    """The arguments of a `scatter_to_vocabulary` node."""

    compact: Any
    draft_ids: Any
    count: Any
    vocab_size: Any
    fill: Any
    nan_spreads: Any = False


def compact_head_consumers(graph_module: fx.GraphModule) -> bool:
    """Before:

        wide      = scatter_to_vocabulary(compact, draft_ids, count, V, -inf)       [.., V]
        log_probs = log_softmax(wide, -1)                                           [.., V]
        best      = topk(log_probs, 8)
        token     = argmax(wide, -1)

    After:

        log_probs_compact = log_softmax(compact, -1)                                [.., K]
        best              = compact_topk(log_probs_compact, draft_ids, count, 8)
        token             = compact_argmax(compact, draft_ids, -inf)

    softmax, log_softmax, casts, positive scales and choices of rows move above the scatter; argmax, max, amax and topk
    end it. Of equal values the smallest id comes first. A scatter goes when its last user does. Left alone: other
    dimensions, topk of more than K or of the smallest, and everything on logits that are written in place.
    """
    changed = False
    pending = [node for node in graph_module.graph.nodes if node.target is scatter_to_vocabulary]
    while pending:
        wide = pending.pop()
        if _may_be_written(wide):
            log.debug("%s is left wide: it is written in place", wide.name)
            continue
        for user in [node for node in wide.users if node.op != "output"]:
            rewrite = _REWRITES.get(op_name(user) or "", _move_up)
            result = rewrite(user, wide)
            if result is None:
                log.debug("%s stays on wide logits", user.name)
                continue
            replace_node(user, result)
            changed = True
            if result.target is scatter_to_vocabulary:
                pending.append(result)
        if not wide.users:
            wide.graph.erase_node(wide)
    return changed


def _move_up(user: fx.Node, wide: fx.Node) -> fx.Node | None:
    """scatter then operation -> operation then scatter."""
    if is_in_place(user) or not any(rule(user, wide) for rule in (is_cast, is_positive_scaling, is_row_choice)):
        return None
    parts = _WideParts(*wide.args)
    moved = parts._replace(compact=insert_on_compact(user, wide, parts.compact))
    return insert_call(user, scatter_to_vocabulary, tuple(moved))


def _normalise(user: fx.Node, wide: fx.Node) -> fx.Node | None:
    """softmax and log_softmax over the last dimension: nothing outside of the draft vocabulary has a share."""
    if user.args[:1] != (wide,) or not is_last_dim(wide, argument(user, 1, "dim")):
        return None
    parts = _WideParts(*wide.args)
    fill = 0.0 if op_name(user) == "softmax" else -torch.inf
    normalised = parts._replace(compact=insert_like(user, {wide: parts.compact}), fill=fill, nan_spreads=True)
    return insert_call(user, scatter_to_vocabulary, tuple(normalised))


def _argmax(user: fx.Node, wide: fx.Node) -> fx.Node | None:
    if not is_last_dim(wide, argument(user, 1, "dim")) or "out" in user.kwargs:
        return None
    return insert_call(user, compact_argmax, _reduction_args(user, wide))


def _max(user: fx.Node, wide: fx.Node) -> fx.Node | None:
    dim = argument(user, 1, "dim")
    if dim is None:  # of all; not the larger of two tensors, torch.max(wide, other=...)
        return _amax(user, wide) if user.args == (wide,) and not user.kwargs else None
    picks_parts = all(part.target is operator.getitem for part in user.users)
    if not is_last_dim(wide, dim) or "out" in user.kwargs or not picks_parts:
        return None
    return insert_call(user, compact_max, _reduction_args(user, wide))


def _amax(user: fx.Node, wide: fx.Node) -> fx.Node | None:
    """The largest value alone, of every row or of all: `fill` is the least, so nothing outside can exceed it."""
    dim = argument(user, 1, "dim", ())
    if user.args[:1] != (wide,) or "out" in user.kwargs or not (dim == () or dim is None or is_last_dim(wide, dim)):
        return None
    return insert_like(user, {wide: _WideParts(*wide.args).compact})


def _topk(user: fx.Node, wide: fx.Node) -> fx.Node | None:
    k, dim, largest = argument(user, 1, "k"), argument(user, 2, "dim", -1), argument(user, 3, "largest", True)
    parts = _WideParts(*wide.args)
    if not isinstance(k, int) or not 1 <= k <= require_example_tensor(parts.draft_ids).shape[0]:
        return None
    picks_parts = all(part.target is operator.getitem for part in user.users)
    if not is_last_dim(wide, dim) or largest is not True or "out" in user.kwargs or not picks_parts:
        return None
    return insert_call(user, compact_topk, (parts.compact, parts.draft_ids, parts.count, k))


def _reduction_args(user: fx.Node, wide: fx.Node) -> tuple:
    parts = _WideParts(*wide.args)
    return (parts.compact, parts.draft_ids, parts.fill, parts.nan_spreads, argument(user, 2, "keepdim", False))


def _may_be_written(wide: fx.Node) -> bool:
    """Whether a call writes in place to this tensor or to what may be a view of it."""
    pending = list(wide.users)
    seen = set()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if is_in_place(node):
            return True
        value = find_example_tensor(node)
        if value is not None and value.is_floating_point() and op_name(node) not in _FRESH_RESULTS:
            pending.extend(node.users)
    return False


_REWRITES: dict[str, Callable[[fx.Node, fx.Node], fx.Node | None]] = {
    "softmax": _normalise,
    "log_softmax": _normalise,
    "argmax": _argmax,
    "max": _max,
    "amax": _amax,
    "topk": _topk,
}
