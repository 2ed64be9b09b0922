"""Restrict output heads: logits of the draft vocabulary's ids only, -inf everywhere else."""

from __future__ import annotations

import logging
from collections import defaultdict

import torch
from torch import Tensor, fx, nn

from compile_passes.compact_logits import mask_unused, scatter_to_vocabulary
from compile_passes.graph_edits import insert_call, replace_node
from compile_passes.node_queries import (
    WeightProduct,
    find_example_tensor,
    find_weight_product,
    is_in_place,
    owner_of,
    require_example_tensor,
    written_inputs,
)
from compile_passes.output_head import alters_fill, find_cap_outside, find_use_as_activation, following_chain
from compile_passes.rewrite_context import RewriteContext, require_context
from compile_passes.row_operations import insert_on_compact
from nanospec.draft_vocabulary import VocabularyViews
from nanospec.ops.gathered_linear import shared_gathered_linear

log = logging.getLogger(__name__)


def gather_output_head(graph_module: fx.GraphModule) -> bool:
    """Before:

        logits = linear(hidden, weight, bias)                         [.., V]
        capped = mul(tanh(truediv(logits, 30)), 30)

    After:

        compact = shared_gathered_linear(hidden, weight, draft_ids, bias, count, rows)   [.., K]
        capped  = mul(tanh(truediv(compact, 30)), 30)
        masked  = mask_unused(capped, draft_ids, count, -inf)
        wide    = scatter_to_vocabulary(masked, draft_ids, count, V, -inf)               [.., V]

    The same numbers at the active ids, -inf elsewhere. Casts, scales, soft caps and choices of rows that follow the
    head come before the scatter, so that no cap lifts a -inf.

    A head is a product with a weight of V rows that is an input of the graph and whose result is only scaled, capped,
    normalised, selected from or scored; or any product with the weight that the caller named. A weight that several
    modules of one graph use is left alone: one of them may be the target.
    """
    context = require_context(graph_module)
    if context.vocabulary is None:
        return False
    heads = _find_heads(graph_module.graph, context, context.vocabulary.vocab_size)
    if heads:
        _refuse_written(context.vocabulary, graph_module.graph, context)
    for node, product in heads:
        _gather(node, product, context, context.vocabulary)
    return bool(heads)


def _find_heads(graph: fx.Graph, context: RewriteContext, vocab_size: int) -> list[tuple[fx.Node, WeightProduct]]:
    users_of_weight: dict[fx.Node, list[tuple[fx.Node, WeightProduct]]] = defaultdict(list)
    for node in graph.nodes:
        product = find_weight_product(node) if node.users else None
        if product is not None and _is_head_weight(product.weight, context, vocab_size):
            users_of_weight[product.weight].append((node, product))
    if not users_of_weight:
        log.debug("no product with an input weight of %d rows in this graph", vocab_size)
    heads = []
    for weight, users in users_of_weight.items():
        owners = {owner_of(node) for node, _ in users}
        if len(owners) > 1:
            log.warning(
                "%s is left alone: several modules of this graph use it, %s", weight.name, sorted(map(str, owners))
            )
            continue
        for node, product in users:
            reason = _reason_to_decline(node, product, context)
            if reason is None:
                heads.append((node, product))
            else:
                log.debug("%s is left alone: %s", node.name, reason)
    return heads


def _is_head_weight(node: fx.Node, context: RewriteContext, vocab_size: int) -> bool:
    weight = context.tensor_of(node)
    rows = require_example_tensor(node).shape[0] if weight is not None and weight.dim() == 2 else None
    if not isinstance(rows, int) or rows != vocab_size:  # an unknown number of rows is not asked about
        return False
    return context.head_weight is None or weight is context.head_weight


def _reason_to_decline(node: fx.Node, product: WeightProduct, context: RewriteContext) -> str | None:
    weight, logits = context.tensor_of(product.weight), find_example_tensor(node)
    hidden = find_example_tensor(product.hidden)
    if weight is None or logits is None or hidden is None:
        return "its shapes are not known"
    if type(weight) not in (Tensor, nn.Parameter):
        return f"its weight is a {type(weight).__name__}"
    if hidden.dtype != weight.dtype or logits.dtype != weight.dtype:
        return f"it mixes dtypes ({hidden.dtype}, {weight.dtype}, {logits.dtype}), as under autocast"
    if product.bias is not None and require_example_tensor(product.bias).shape != weight.shape[:1]:
        return "its bias is not [V]"
    if context.head_weight is None and (follower := find_use_as_activation(node)) is not None:
        return f"{follower.name} takes its result, so it may be no output head"
    if (cap := find_cap_outside(node)) is not None:
        return f"{cap.name} squashes its result beside another use, and would lift -inf"
    return None


def _is_written(weight: fx.Node) -> bool:
    """Whether any call of the graph writes to the weight."""
    return any(is_in_place(node) and weight in written_inputs(node) for node in weight.graph.nodes)


def _refuse_written(vocabulary: VocabularyViews, graph: fx.Graph, context: RewriteContext) -> None:
    """NotImplementedError for a graph that changes the vocabulary that it drafts from."""
    storages = {vocabulary.draft_ids.untyped_storage().data_ptr(), vocabulary.count.untyped_storage().data_ptr()}
    for node in graph.nodes:
        for written in written_inputs(node) if is_in_place(node) else ():
            tensor = context.tensor_of(written)
            if tensor is not None and tensor.untyped_storage().data_ptr() in storages:
                raise NotImplementedError(
                    f"vocabulary must be written outside of the compiled graph, {node.name} writes it inside"
                )


def _gather(node: fx.Node, product: WeightProduct, context: RewriteContext, vocabulary: VocabularyViews) -> None:
    weight = context.tensor_of(product.weight)
    assert weight is not None, "a head's weight is an input"
    if vocabulary.draft_ids.device != weight.device:
        raise ValueError(f"vocabulary must be on the head's device {weight.device}, got {vocabulary.draft_ids.device}")
    graph = node.graph
    draft_ids = context.static_input(graph, vocabulary.draft_ids, "draft_ids")
    count = context.static_input(graph, vocabulary.count, "count")
    is_trained = weight.requires_grad and require_example_tensor(node).requires_grad
    is_read_anew = is_trained or _is_written(product.weight)
    rows = None if is_read_anew else context.packed_input(product.weight, vocabulary.pack)
    args = (product.hidden, product.weight, draft_ids, product.bias, count, rows)
    compact = insert_call(node, shared_gathered_linear, args)

    last, is_masked = node, True
    for follower in following_chain(node):
        compact = insert_on_compact(follower, last, compact)
        is_masked = is_masked and not alters_fill(follower, last)
        last = follower
    if not is_masked:
        compact = insert_call(last, mask_unused, (compact, draft_ids, count, -torch.inf))
    wide_args = (compact, draft_ids, count, vocabulary.vocab_size, -torch.inf)
    replace_node(last, insert_call(last, scatter_to_vocabulary, wide_args))
