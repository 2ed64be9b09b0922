"""The stage after the target's pass over the tree: accepted path and next token, greedy or sampled."""

from __future__ import annotations

from torch import Tensor

from nanospec.acceptance import accept_greedy, accept_sampled
from nanospec.records import DraftTree, Verdict
from nanospec.sampling import SamplingParams
from nanospec.typical_acceptance import accept_typical


def verify(
    tree: DraftTree,
    best_id: Tensor | None,
    logits: Tensor | None,
    params: SamplingParams,
    u: Tensor | None = None,
    seen: Tensor | None = None,
    *,
    max_depth: int,
) -> Verdict:
    """What the target makes of `tree`; its output is the target's own, whatever was drafted (see `acceptance`).

    Only acceptance="typical" in params is lossy (see `typical_acceptance`).

    best_id int64 [B, T]    the target's argmax at every node; read when params need no full logits
    logits [B, T, V]        the target's logits at every node; read when params.needs_full_logits
    u float64 [B, L]        L = max_depth + 1 uniform numbers, one per output position; at temperature > 0
    seen bool [B, V]        ids of the prompt and of all output including the root; with a repetition penalty
    max_depth               no used node is deeper

    Raises ValueError if an argument that params need is missing or has another shape. Values are not looked at: whether
    logits are finite is the caller's business.
    """
    if max_depth < 0:
        raise ValueError(f"max_depth must be at least 0, got {max_depth}")
    batch, num_nodes = tree.token_ids.shape
    if not params.needs_full_logits:
        return accept_greedy(tree, _require("best_id", best_id, (batch, num_nodes)), max_depth)
    logits = _require("logits", logits, (batch, num_nodes, None))
    u = None if params.is_greedy else _require("u", u, (batch, max_depth + 1))
    seen = None if params.repetition_penalty == 1 else _require("seen", seen, (batch, logits.shape[2]))
    if not params.is_lossless:
        assert u is not None, "SamplingParams demands a temperature"
        return accept_typical(tree, logits, params, u, seen, max_depth)
    return accept_sampled(tree, logits, params, u, seen, max_depth)


def _require(name: str, tensor: Tensor | None, shape: tuple[int | None, ...]) -> Tensor:
    """The tensor, if it is there and has this shape; None in a shape stands for any size."""
    wanted = ", ".join("V" if size is None else str(size) for size in shape)
    if tensor is None:
        raise ValueError(f"{name} must be a tensor of shape [{wanted}] for these sampling parameters, got None")
    if tensor.dim() != len(shape) or any(
        want not in (None, size) for want, size in zip(shape, tensor.shape, strict=True)
    ):
        raise ValueError(f"{name} must have shape [{wanted}], got {list(tensor.shape)}")
    return tensor
