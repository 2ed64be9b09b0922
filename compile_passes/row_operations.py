"""Operations that do the same to every column of logits: they may run over K draft ids instead of V."""

from __future__ import annotations

import math

from torch import Tensor, fx

from compile_passes.graph_edits import insert_like
from compile_passes.node_queries import (
    argument,
    find_example_tensor,
    op_name,
    require_example_tensor,
    trailing_arguments,
)

_CASTS = frozenset("float half bfloat16 double to type type_as".split())
_SCALINGS = frozenset("mul div mul_ div_".split())
_SQUASHINGS = frozenset("tanh tanh_".split())
_COPIES = frozenset("contiguous detach clone".split())
_RESHAPES = frozenset("view reshape flatten squeeze unsqueeze".split())


def is_cast(node: fx.Node, logits: fx.Node) -> bool:
    """Whether the node is `logits` in another floating dtype, on the same device."""
    before, after = find_example_tensor(logits), find_example_tensor(node)
    if op_name(node) not in _CASTS or not node.args or node.args[0] is not logits or before is None or after is None:
        return False
    return after.is_floating_point() and after.device == before.device


def is_scaling(node: fx.Node, logits: fx.Node) -> bool:
    """Whether the node is `logits` times or over a positive number, or over a tensor with one element."""
    name = op_name(node)
    if name not in _SCALINGS or len(node.args) != 2 or node.kwargs:
        return False
    others = [operand for operand in node.args if operand is not logits]
    if len(others) != 1 or (name.startswith("div") and node.args[0] is not logits):
        return False
    if isinstance(others[0], int | float):
        return math.isfinite(others[0]) and others[0] > 0
    other = find_example_tensor(others[0])
    return other is not None and other.numel() == 1 and other.dim() <= require_example_tensor(logits).dim()


def is_positive_scaling(node: fx.Node, logits: fx.Node) -> bool:
    """As `is_scaling`, by a number: what was -inf or 0 stays so."""
    return is_scaling(node, logits) and not all(isinstance(operand, fx.Node) for operand in node.args)


def is_squashing(node: fx.Node, logits: fx.Node) -> bool:
    """Whether the node is tanh(logits), as in a soft cap."""
    return op_name(node) in _SQUASHINGS and node.args == (logits,) and not node.kwargs


def is_row_choice(node: fx.Node, logits: fx.Node) -> bool:
    """Whether the node picks, copies or regroups rows of `logits` [.., V] and leaves the last dimension alone."""
    before, after = find_example_tensor(logits), find_example_tensor(node)
    if before is None or after is None or not node.args or node.args[0] is not logits:
        return False
    name = op_name(node)
    if name in _COPIES:
        return True
    if name == "getitem":
        return _indexes_rows(node.args[1], before.dim())
    return name in _RESHAPES and after.dim() > 0 and _keeps_last_dim(node, before, after)


def insert_on_compact(node: fx.Node, logits: fx.Node, compact: fx.Node) -> fx.Node:
    """The same operation in front of `node`, on `compact` [.., K] instead of `logits` [.., V]."""
    args = None
    if op_name(node) in ("view", "reshape"):
        *leading, last = trailing_arguments(node)
        args = (compact, *leading, last if last == -1 else require_example_tensor(compact).shape[-1])
    return insert_like(node, {logits: compact}, args)


def _indexes_rows(index: object, num_dims: int) -> bool:
    """Whether logits[index] takes the last dimension whole and where it was."""
    items = list(index) if isinstance(index, tuple | list) else [index]
    if isinstance(index, list) or any(isinstance(item, bool | list | tuple) for item in items):
        return False
    if items.count(Ellipsis) > 1 or any(not _is_row_index(item) for item in items):
        return False
    num_indexed = sum(item is not None and item is not Ellipsis for item in items)
    if num_indexed < num_dims and items[-1:] != [None]:
        return Ellipsis not in items or items[-1] is Ellipsis or items[-1] == slice(None)
    return num_indexed == num_dims and isinstance(items[-1], slice) and items[-1] == slice(None)


def _is_row_index(item: object) -> bool:
    """Numbers, slices, new dimensions; no tensors, which may be masks or move dimensions."""
    return item is None or item is Ellipsis or isinstance(item, int | slice)


def _keeps_last_dim(node: fx.Node, before: Tensor, after: Tensor) -> bool:
    name, num_dims, num_columns = op_name(node), before.dim(), before.shape[-1]
    if not isinstance(after.shape[-1], int) or after.shape[-1] != num_columns:
        return False  # an unknown size is not asked about: the answer would become a guard
    if name in ("view", "reshape"):
        sizes = trailing_arguments(node)
        return not node.kwargs and len(sizes) > 0 and isinstance(sizes[-1], int) and sizes[-1] in (-1, num_columns)
    if name == "flatten":
        end = argument(node, 2, "end_dim", -1)
        return isinstance(end, int) and end % num_dims != num_dims - 1
    dim = argument(node, 1, "dim")
    if not isinstance(dim, int):
        return False
    if name == "squeeze":
        return dim % num_dims != num_dims - 1
    return dim % (num_dims + 1) != num_dims  # unsqueeze
