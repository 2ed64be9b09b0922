"""An output head that no pass has restricted although there is a vocabulary: what the backend warns of."""

from __future__ import annotations

from typing import NamedTuple

from torch import fx

from compile_passes.dynamo_graph import ends_in_graph_break
from compile_passes.node_queries import call_name, find_example_tensor, find_weight_product, require_example_tensor
from compile_passes.output_head import find_use_as_activation
from compile_passes.rewrite_context import RewriteContext

# Heads may score a part of the vocabulary; products with fewer rows than this part of it belong to other layers.
_LEAST_SHARE = 1 / 8
_SCORINGS = frozenset(
    "argmax max amax topk sort argsort softmax log_softmax logsumexp multinomial cross_entropy".split()
)


class OverlookedHead(NamedTuple):
    """The name of the weight among the graph's inputs, and how many ids it scores."""

    weight: str
    num_rows: int


def find_overlooked_head(graph_module: fx.GraphModule, context: RewriteContext) -> OverlookedHead | None:
    """The first product of a rewritten graph that looks like an output head and still computes all of its rows.

    It multiplies with an input of the graph: the weight that the caller named, one [V, D], or one [W, D] with W above D
    and at least an eighth of V. Numbers of width W made of it are returned or chosen from; nothing takes them for
    activations. What leaves the graph at a graph break is not returned, the rest of the model takes it: there W must be
    V or the weight the named one, and an MLP broken behind its first product is none. So a model that Dynamo has broken
    into several graphs has none where its head is not: the others hand on activations, or return hidden states, of
    width D, or the parts of attention, as wide as one of its heads.
    """
    if context.vocabulary is None:
        return None
    vocab_size, is_broken = context.vocabulary.vocab_size, ends_in_graph_break(graph_module)
    for node in graph_module.graph.nodes:
        product = find_weight_product(node) if node.users else None
        num_rows = None if product is None else _rows_of_head(product.weight, context, vocab_size)
        if product is None or num_rows is None or find_use_as_activation(node) is not None:
            continue
        is_certain = num_rows == vocab_size or context.head_weight is not None
        if _is_scored(node, num_rows, returns=is_certain or not is_broken):
            return OverlookedHead(product.weight.name, num_rows)
    return None


def _rows_of_head(node: fx.Node, context: RewriteContext, vocab_size: int) -> int | None:
    """Rows of a weight that may be an output head's; None for others and where its shape is not known."""
    weight = context.tensor_of(node)
    if weight is None or weight.dim() != 2:
        return None
    rows, columns = require_example_tensor(node).shape
    if not isinstance(rows, int) or not isinstance(columns, int):  # an unknown size is not asked about
        return None
    if context.head_weight is not None:
        return rows if weight is context.head_weight else None
    return rows if rows > columns and rows >= _LEAST_SHARE * vocab_size else None


def _is_scored(head: fx.Node, num_rows: int, returns: bool) -> bool:
    """Whether the result, or what is made of it in the same width, is chosen from, or leaves a graph that `returns`."""
    seen, pending = {head}, [head]
    while pending:
        for user in pending.pop().users:
            if call_name(user) in _SCORINGS or (user.op == "output" and returns):
                return True
            value = find_example_tensor(user)
            width = value.shape[-1] if value is not None and value.dim() else None
            if isinstance(width, int) and width == num_rows and user not in seen:
                seen.add(user)
                pending.append(user)
    return False
