"""What follows an output head, as far as it matters for restricting it."""

from __future__ import annotations

from torch import fx

from compile_passes.node_queries import call_name, find_example_tensor, op_name
from compile_passes.row_operations import is_cast, is_row_choice, is_scaling, is_squashing

# What is done with logits, log-probabilities and scores made of them. Anything else may be the rest of a network.
_USES_OF_LOGITS = frozenset(
    """
    float half bfloat16 double to type type_as view reshape flatten squeeze unsqueeze expand contiguous detach clone
    getitem select narrow chunk split unbind transpose permute t mT T movedim getattr size shape numel dim
    mul div mul_ div_ add sub iadd isub add_ sub_ neg tanh tanh_ sigmoid exp log log1p clamp clamp_ nan_to_num
    softmax log_softmax logsumexp softplus logsigmoid sum mean max min amax amin argmax argmin topk sort argsort
    kthvalue cumsum quantile std var norm where masked_fill masked_fill_ masked_select gather take_along_dim
    index_select scatter scatter_ scatter_add scatter_add_ setitem isnan isinf isneginf isfinite eq ne lt le gt ge
    any all cat stack pad repeat repeat_interleave tile roll flip cross_entropy nll_loss kl_div multinomial bernoulli
    square pow nan_to_num_
    """.split()
)


def find_use_as_activation(head: fx.Node) -> fx.Node | None:
    """A call that may take numbers computed from the logits for activations; None if there is none.

    Ids chosen by the logits may do anything, so a loop that drafts token after token may be one graph.
    """
    seen, pending = {head}, [(head, user) for user in head.users]
    while pending:
        source, node = pending.pop()
        if node in seen or node.op == "output":
            continue
        seen.add(node)
        value = find_example_tensor(node)
        if value is not None and not (value.is_floating_point() or value.is_complex()):
            continue
        if call_name(node) not in _USES_OF_LOGITS or _multiplies_with_tensor(node) or _is_stored(source, node):
            return node
        pending.extend((node, user) for user in node.users)
    return None


def following_chain(head: fx.Node) -> list[fx.Node]:
    """Casts, scales, soft caps and choices of rows that follow one another behind the head, each the only user."""
    chain, last = [], head
    while len(last.users) == 1:
        follower = next(iter(last.users))
        if not (alters_fill(follower, last) or is_cast(follower, last) or is_row_choice(follower, last)):
            break
        chain.append(follower)
        last = follower
    return chain


def alters_fill(node: fx.Node, logits: fx.Node) -> bool:
    """Whether the link of a chain may make something else of -inf."""
    return is_scaling(node, logits) or is_squashing(node, logits)


def find_cap_outside(head: fx.Node) -> fx.Node | None:
    """A tanh of the logits outside of the chain, since they have other users too: the mask would come before it."""
    chain = {head, *following_chain(head)}
    seen, pending = set(chain), [user for node in chain for user in node.users]
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        value = find_example_tensor(node)
        if value is None or not value.is_floating_point() or op_name(node) in ("softmax", "log_softmax"):
            continue
        if call_name(node) in ("tanh", "tanh_", "sigmoid", "sigmoid_"):
            return node
        pending.extend(node.users)
    return None


def _multiplies_with_tensor(node: fx.Node) -> bool:
    """Whether a product with more than one number is taken, as a weighted sum may begin."""
    if op_name(node) not in ("mul", "div", "mul_", "div_"):
        return False
    operands = [find_example_tensor(operand) for operand in node.args]
    return sum(tensor is not None and tensor.numel() != 1 for tensor in operands) > 1


def _is_stored(source: fx.Node, node: fx.Node) -> bool:
    """Whether the node writes the numbers of `source` into another tensor."""
    return call_name(node) == "setitem" and node.args[0] is not source
