"""Questions about nodes of Dynamo's graphs, where one operation has several spellings.

`find_*` may return None, `require_*` must find; `is_*` are predicates.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch.nn import functional as F

# Spellings as functions; as methods the operations carry these names anyway.
_FUNCTION_NAMES: dict[object, str] = {
    F.linear: "linear",
    torch.matmul: "matmul",
    torch.mm: "mm",
    operator.matmul: "matmul",
    torch.addmm: "addmm",
    torch.t: "t",
    torch.transpose: "transpose",
    torch.permute: "permute",
    torch.argmax: "argmax",
    torch.max: "max",
    torch.amax: "amax",
    torch.topk: "topk",
    torch.softmax: "softmax",
    F.softmax: "softmax",
    torch.log_softmax: "log_softmax",
    F.log_softmax: "log_softmax",
    torch.tanh: "tanh",
    torch.mul: "mul",
    torch.div: "div",
    operator.mul: "mul",
    operator.imul: "mul_",
    operator.truediv: "div",
    operator.itruediv: "div_",
    torch.index_select: "index_select",
    torch.flatten: "flatten",
    torch.reshape: "reshape",
    torch.squeeze: "squeeze",
    torch.unsqueeze: "unsqueeze",
    torch.clone: "clone",
    operator.getitem: "getitem",
}
_METHOD_NAMES = {
    "__matmul__": "matmul",
    "__getitem__": "getitem",
    "__truediv__": "div",
    "__mul__": "mul",
    "divide": "div",
}
_IN_PLACE_OPERATORS = frozenset(
    getattr(operator, name) for name in "setitem iadd isub imul itruediv ifloordiv imod ipow iand ior ixor".split()
)


class WeightProduct(NamedTuple):
    """hidden [.., D] times the transpose of an input weight [V, D], plus bias [V] or None: all as nodes."""

    hidden: fx.Node
    weight: fx.Node
    bias: fx.Node | None


def op_name(node: fx.Node) -> str | None:
    """The operation by its method's name, however it was spelled; None for what no query asks about."""
    target: Any = node.target
    if node.op == "call_method":
        return _METHOD_NAMES.get(target, target)
    return _FUNCTION_NAMES.get(target) if node.op == "call_function" else None


def call_name(node: fx.Node) -> str:
    """The name under which a function or method is called, whatever it is."""
    name: Any = op_name(node)
    return name or getattr(node.target, "__name__", str(node.target))


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument that may be given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def trailing_arguments(node: fx.Node) -> tuple[Any, ...]:
    """What follows the first operand, given one by one or as one sequence: the sizes of view, the dims of permute."""
    rest: Any = node.args[1:]
    return tuple(rest[0]) if len(rest) == 1 and isinstance(rest[0], tuple | list) else tuple(rest)


def example_value(node: fx.Node) -> Any:
    """The fake tensor (or what else) that the node yielded while it was traced; None if it is not known."""
    return node.meta.get("example_value")


def find_example_tensor(node: object) -> Tensor | None:
    value = example_value(node) if isinstance(node, fx.Node) else None
    return value if isinstance(value, Tensor) else None


def require_example_tensor(node: fx.Node) -> Tensor:
    tensor = find_example_tensor(node)
    assert tensor is not None, f"node {node.name} must yield a tensor"
    return tensor


def is_in_place(node: fx.Node) -> bool:
    """Whether the call may write to one of its arguments: by its schema, its name, or a flag that says so."""
    target: Any = node.target
    if node.op == "call_method":
        return target == "__setitem__" or (target.endswith("_") and not target.endswith("__"))
    if node.op != "call_function":
        return node.op == "call_module"
    if "out" in node.kwargs or target in _IN_PLACE_OPERATORS or isinstance(target, HigherOrderOperator):
        return True
    if isinstance(target, OpOverload | OpOverloadPacket):
        overloads = (
            [getattr(target, name) for name in target.overloads()] if isinstance(target, OpOverloadPacket) else [target]
        )
        return any(overload._schema.is_mutable for overload in overloads)
    name = getattr(target, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or _has_inplace_flag(node)


def written_inputs(node: fx.Node) -> set[fx.Node]:
    """Inputs of the graph that an in-place call may write to, be it through views of them."""
    pending, bases, seen = list(node.all_input_nodes), set(), set()
    while pending:
        operand = pending.pop()
        if operand in seen:
            continue
        seen.add(operand)
        if operand.op == "placeholder":
            bases.add(operand)
        elif operand.all_input_nodes:
            pending.append(operand.all_input_nodes[0])  # what a view is a view of comes first
    return bases


def _has_inplace_flag(node: fx.Node) -> bool:
    """Whether a function like F.relu is called with inplace=True."""
    target: Any = node.target
    if node.kwargs.get("inplace") is True:
        return True
    code = getattr(target, "__code__", None)
    names = code.co_varnames[: code.co_argcount] if code is not None else ()
    position = names.index("inplace") if "inplace" in names else len(node.args)
    return position < len(node.args) and node.args[position] is True


def is_last_dim(node: fx.Node, dim: object) -> bool:
    """Whether `dim` is the last dimension of what `node` yields."""
    tensor = find_example_tensor(node)
    return tensor is not None and isinstance(dim, int) and dim in (-1, tensor.dim() - 1)


def find_weight_product(node: fx.Node) -> WeightProduct | None:
    """The operands of linear(h, W, b), h @ W.T, mm(h, W.T) or addmm(b, h, W.T), W an input of the graph."""
    name = op_name(node)
    bias = None
    if name == "linear":
        hidden, weight, bias = argument(node, 0, "input"), argument(node, 1, "weight"), argument(node, 2, "bias")
    elif name in ("matmul", "mm"):
        hidden = argument(node, 0, "input")
        weight = find_transposed(argument(node, 1, "other", node.kwargs.get("mat2")))
    elif name == "addmm":
        if node.kwargs.get("beta", 1) != 1 or node.kwargs.get("alpha", 1) != 1 or len(node.args) > 3:
            return None
        bias, hidden = argument(node, 0, "input"), argument(node, 1, "mat1")
        weight = find_transposed(argument(node, 2, "mat2"))
    else:
        return None
    if not isinstance(hidden, fx.Node) or not isinstance(weight, fx.Node) or "out" in node.kwargs:
        return None
    if weight.op != "placeholder" or (bias is not None and not isinstance(bias, fx.Node)):
        return None
    return WeightProduct(hidden, weight, bias)


def find_transposed(node: object) -> fx.Node | None:
    """W where the node is W.t(), W.T, W.mT, W.transpose(0, 1) or W.permute(1, 0) of a matrix."""
    if not isinstance(node, fx.Node) or not node.args:
        return None
    matrix = node.args[0]
    tensor = find_example_tensor(matrix)
    if tensor is None or tensor.dim() != 2:
        return None
    name = op_name(node)
    if name in ("transpose", "permute"):
        ordered = [dim % 2 for dim in trailing_arguments(node) if isinstance(dim, int)]
        swaps = ordered == [1, 0] or (name == "transpose" and ordered == [0, 1])
    else:
        swaps = name == "t" or (node.target is getattr and node.args[1] in ("T", "mT"))
    return matrix if swaps and isinstance(matrix, fx.Node) else None


def owner_of(node: fx.Node) -> str | None:
    """The paths of the modules whose code made this node, outermost first; None for code outside of any module."""
    stack = node.meta.get("nn_module_stack")
    return " > ".join(path for path, _ in stack.values()) if stack else None


def is_written_between(first: fx.Node, last: fx.Node) -> bool:
    """Whether any call between the two writes in place, to whatever it may be."""
    node = first.next
    while node is not last:
        if is_in_place(node):
            return True
        node = node.next
    return False
