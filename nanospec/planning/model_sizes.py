"""What one pass of a model works through: its products, its cache, its head. No weights are needed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

BYTES_PER_WEIGHT = 2  # all figures are of 16-bit weights, caches and rows


class Product(NamedTuple):
    """States [n, inputs] times weights [outputs, inputs], so often in a pass; where there are experts, each token
    takes `experts_per_token` of `num_experts` such weights."""

    outputs: int
    inputs: int
    times: int = 1
    num_experts: int = 1
    experts_per_token: int = 1

    def num_weights(self, num_rows: float) -> float:
        """Weights that a pass over so many rows reads: the experts that some token takes, if each takes its own at
        random.

            E (1 - (1 - k / E)^n)
        """
        return self.num_met(num_rows) * self.outputs * self.inputs

    def num_met(self, num_rows: float) -> float:
        """Matrices that some row meets."""
        left_out = (1 - self.experts_per_token / self.num_experts) ** num_rows
        return self.times * self.num_experts * (1 - left_out)

    def num_outputs(self, num_rows: float) -> float:
        """Outputs of a row, over all matrices that some row meets."""
        return self.num_met(num_rows) * self.outputs

    def rows_per_weight(self, num_rows: float) -> float:
        """Rows that each of these weights meets, on average."""
        return num_rows * self.experts_per_token * self.times / self.num_met(num_rows)


@dataclass(frozen=True)
class ModelSizes:
    """A language model, or a draft's layers.

    products         of one pass, the head not among them
    attention_width  numbers of a query over all heads of a layer
    cache_width      numbers that one token leaves in the cache of a layer
    activations      numbers that one token's element-wise operations write in a pass
    num_ids          rows of the head
    notes            sentences on what its config left open
    """

    hidden_size: int
    num_layers: int
    attention_width: int
    cache_width: int
    activations: int
    num_ids: int
    products: tuple[Product, ...]
    notes: tuple[str, ...] = field(default=(), compare=False)

    def num_weights(self, num_rows: float) -> float:
        """Weights that a pass over so many rows reads, without the head."""
        return sum(product.num_weights(num_rows) for product in self.products)

    def with_num_ids(self, num_ids: int) -> ModelSizes:
        """The same model over a vocabulary of another size."""
        return replace(self, num_ids=num_ids)


@dataclass(frozen=True)
class DraftSizes:
    """A drafter: `body` runs once per level below the first, unless `is_parallel` (Medusa, whose heads speak at once).

    taking_in   products that run only when verified tokens are taken in: EAGLE-3's fusion, Medusa's blocks
    is_eager    its layers are those of transformers, as a target's
    max_depth   levels that it can draft; None: any
    can_pack    rows of a draft vocabulary can be kept together: one head serves all levels
    """

    family: str
    body: ModelSizes
    taking_in: tuple[Product, ...] = ()
    is_parallel: bool = False
    is_eager: bool = False
    max_depth: int | None = None
    can_pack: bool = True

    def with_num_ids(self, num_ids: int) -> DraftSizes:
        return replace(self, body=self.body.with_num_ids(num_ids))


def layer_activations(hidden_size: int, intermediate_size: int, attention_width: int, cache_width: int) -> int:
    """Numbers that the element-wise operations of one decoder layer write per token: two norms in float32, about seven
    operations each, and two sums over D, the gated activation over I, and the rotation of queries and keys."""
    return 16 * hidden_size + 2 * intermediate_size + 5 * (attention_width + cache_width // 2)
