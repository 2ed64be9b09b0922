"""What one row of a draft vocabulary costs, as a share of a decoding step: by the bytes that both read."""

from __future__ import annotations

from torch import nn

from nanospec.drafters.drafter import Drafter, HasHead
from nanospec.target import Target
from nanospec.tree_growers import model_of
from nanospec.tree_shape import TreeShape


def row_cost(target: Target, drafter: Drafter, shape: TreeShape) -> float:
    """A row is read once per level; a step reads the target once, the drafter once per level and once to catch up.

    Embeddings, of which a pass reads a few rows, and caches are left out, and so is what the draft vocabulary reads.
    Decoding one sequence waits for memory on most machines; where it waits for arithmetic, a row costs less than this.
    """
    head = target.head_weight
    row_bytes = shape.depth * head.shape[1] * head.element_size()
    body_bytes = _bytes_beside_tables(target.model, target.vocab_size)
    head_bytes = head.numel() * head.element_size()
    model = model_of(drafter)
    num_ids = model.head.weight.shape[0] if isinstance(model, HasHead) else target.vocab_size
    level_bytes = _bytes_beside_tables(model, target.vocab_size, num_ids) if isinstance(model, nn.Module) else 0
    return row_bytes / (body_bytes + head_bytes + (shape.depth + 1) * level_bytes)


def _bytes_beside_tables(module: nn.Module, *num_ids: int) -> int:
    """Bytes of all parameters but those with a row for each of so many ids: embeddings and heads."""
    parameters = (parameter for parameter in module.parameters() if parameter.shape[0] not in num_ids)
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)
