"""Several gathered products with one weight and the same ids: gather the rows once."""

from __future__ import annotations

import logging
from collections import defaultdict

import torch
from torch import fx

from compile_passes.graph_edits import insert_call
from compile_passes.node_queries import is_written_between, require_example_tensor
from nanospec.ops.gathered_linear import shared_gathered_linear

log = logging.getLogger(__name__)
_ROWS = 5  # position of `rows` among the arguments, which passes give in full


def share_gathered_rows(graph_module: fx.GraphModule) -> bool:
    """Before:

        first  = shared_gathered_linear(hidden_1, weight, ids, None, None, None)
        second = shared_gathered_linear(hidden_2, weight, ids, None, None, None)

    After:

        rows   = index_select(weight, 0, ids)                                          [K, D]
        first  = shared_gathered_linear(hidden_1, weight, ids, None, None, rows)
        second = shared_gathered_linear(hidden_2, weight, ids, None, None, rows)

    On a CPU, where a product with gathered rows copies them first. Left alone: elsewhere, since kernels read rows where
    they lie; products that have rows already; products between which anything is written in place.
    """
    alike: dict[tuple[fx.Node, fx.Node], list[fx.Node]] = defaultdict(list)
    for node in graph_module.graph.nodes:
        if node.target is shared_gathered_linear and node.args[_ROWS] is None:
            alike[node.args[1], node.args[2]].append(node)
    changed = False
    for (weight, ids), products in alike.items():
        if len(products) < 2:
            continue
        reason = _reason_to_decline(weight, products)
        if reason is not None:
            log.debug("%s products with %s gather on their own: %s", len(products), weight.name, reason)
            continue
        rows = insert_call(products[0], torch.index_select, (weight, 0, ids))
        for node in products:
            node.args = (*node.args[:_ROWS], rows)
        changed = True
    return changed


def _reason_to_decline(weight: fx.Node, products: list[fx.Node]) -> str | None:
    if require_example_tensor(weight).device.type != "cpu":
        return "kernels read rows in place"
    if is_written_between(products[0], products[-1]):
        return "something is written in place between them"
    return None
