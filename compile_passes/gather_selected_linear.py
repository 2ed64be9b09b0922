"""Columns of a product selected afterwards: compute only those."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, fx

from compile_passes.graph_edits import insert_call, replace_node
from compile_passes.node_queries import (
    WeightProduct,
    argument,
    find_example_tensor,
    find_weight_product,
    is_last_dim,
    is_written_between,
    op_name,
    require_example_tensor,
)
from nanospec.ops.gathered_linear import shared_gathered_linear

log = logging.getLogger(__name__)


def gather_selected_linear(graph_module: fx.GraphModule) -> bool:
    """Before:

        logits   = linear(hidden, weight, bias)           [.., V]
        selected = index_select(logits, -1, ids)          [.., m], or logits[..., ids]

    After:

        gathered = shared_gathered_linear(hidden, weight, ids, bias)      [.., m]
        selected = contiguous(gathered)

    The same products, over m rows of the weight instead of V. Left alone: logits that something else needs
    too, ids that are no 1-D integer tensor, and lists of ids known to be longer than V.
    """
    changed = False
    for node in list(graph_module.graph.nodes):
        selection = _find_selection(node)
        if selection is None:
            continue
        logits, ids, may_be_negative = selection
        product = find_weight_product(logits)
        if product is None:
            continue
        reason = _reason_to_decline(logits, product, node, ids)
        if reason is not None:
            log.debug("%s is left alone: %s", node.name, reason)
            continue
        if may_be_negative:
            ids = insert_call(node, _count_from_end, (ids, require_example_tensor(product.weight).shape[0]))
        if require_example_tensor(ids).dtype != torch.int64:
            ids = insert_call(node, torch.Tensor.long, (ids,))
        args = (product.hidden, product.weight, ids, product.bias, None, None)
        selected = insert_call(node, shared_gathered_linear, args)
        replace_node(node, insert_call(node, torch.Tensor.contiguous, (selected,)))
        changed = True
    return changed


def _find_selection(node: fx.Node) -> tuple[fx.Node, fx.Node, bool] | None:
    """(logits, ids, whether negative ids count from the end) of logits.index_select(-1, ids) or logits[..., ids]."""
    if op_name(node) == "index_select":
        logits, dim, ids = argument(node, 0, "input"), argument(node, 1, "dim"), argument(node, 2, "index")
        found = isinstance(logits, fx.Node) and is_last_dim(logits, dim) and "out" not in node.kwargs
        return (logits, ids, False) if found else None
    if op_name(node) != "getitem" or not isinstance(node.args[1], tuple) or not node.args[1]:
        return None
    logits = argument(node, 0, "input")
    *leading, ids = argument(node, 1, "index")
    tensor = find_example_tensor(logits)
    if tensor is None or not isinstance(ids, fx.Node):
        return None
    takes_all_rows = leading == [Ellipsis] or (
        len(leading) == tensor.dim() - 1 and all(isinstance(item, slice) and item == slice(None) for item in leading)
    )
    return (logits, ids, True) if takes_all_rows else None


def _reason_to_decline(logits: fx.Node, product: WeightProduct, selection: fx.Node, ids: object) -> str | None:
    ids_value, weight = find_example_tensor(ids), find_example_tensor(product.weight)
    value, hidden = find_example_tensor(logits), find_example_tensor(product.hidden)
    if ids_value is None or weight is None or value is None or hidden is None:
        return "its shapes are not known"
    if ids_value.dtype not in (torch.int32, torch.int64) or ids_value.dim() != 1:
        return "the selection is no 1-D integer tensor"
    if len(logits.users) != 1:
        return "its logits have other users"
    if is_written_between(logits, selection):
        return "something is written in place between product and selection"
    if hidden.dtype != weight.dtype or value.dtype != weight.dtype:
        return f"it mixes dtypes ({hidden.dtype}, {weight.dtype}, {value.dtype}), as under autocast"
    if isinstance(ids_value.shape[0], int) and ids_value.shape[0] > weight.shape[0]:
        return "it selects more columns than there are"
    if product.bias is not None and require_example_tensor(product.bias).shape != weight.shape[:1]:
        return "its bias is not [V]"
    return None


def _count_from_end(ids: Tensor, num_rows: int) -> Tensor:
    """Negative ids count from the end, as in indexing."""
    return torch.where(ids < 0, ids + num_rows, ids)
