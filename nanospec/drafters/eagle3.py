"""EAGLE-3 draft model: features of several target layers fused into one, a first layer that reads two inputs.

EAGLE-3 (Li et al. 2025), section 3.1. For the token x after a position whose target features are f_1..f_n:

    h    = fc(f_1 .. f_n)                       at verified positions; below the root the state of the parent
    a    = (norm_e(embed(x)), norm_h(h))        what the attention of the first layer reads, 2 D wide
    out  = layers(h + attention(a))             residual h, un-normed
    next state = out, logits = head(norm(out))

Variants: a norm per feature or over all of them before fc (EAGLE-3.1, speculators), norm_h(h) as the residual
(speculators), norm(out) as the next state (`norm_output`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from nanospec.drafters.eagle import EagleDrafter, EagleLayer, EagleShape, rms_norm
from nanospec.gathered_head import GatheredHead


@dataclass(frozen=True)
class Eagle3Wiring:
    """What EAGLE-3 has beyond the shape of its layers.

    feature_layers        target layers whose inputs are the features, as in `Target`
    target_hidden_size    width of one feature
    fc_norm               every feature is normed before fc
    norm_before_fc        all features are normed as one vector before fc
    norm_before_residual  the residual of the first layer is the normed state
    norm_output           the next state is the normed output
    """

    feature_layers: tuple[int, ...]
    target_hidden_size: int
    fc_norm: bool = False
    norm_before_fc: bool = False
    norm_before_residual: bool = False
    norm_output: bool = False


def default_feature_layers(num_layers: int) -> tuple[int, int, int]:
    """Low, middle and high layer of a target, as EAGLE-3 was trained: 32 layers give (2, 16, 29)."""
    return 2, num_layers // 2, num_layers - 3


class Eagle3Drafter(EagleDrafter):
    """EAGLE-3 drafter with its own key-value cache; implements `Drafter`. Compiles like the EAGLE drafter that it is.

    embed_tokens  the target's embedding (shared, not owned), or the number of ids of an embedding of its own
    head          the target's head (shared, not owned), or the number of rows of a head of its own
    target_ids    int64 [rows of the head], the id of the target that each row scores; None: row i scores id i
    """

    name = "eagle3"

    def __init__(
        self,
        shape: EagleShape,
        wiring: Eagle3Wiring,
        rope_config: LlamaConfig,
        embed_tokens: nn.Module | int,
        head: GatheredHead | int,
        target_ids: Tensor | None = None,
    ) -> None:
        assert (shape.two_inputs, shape.input_norm) == (True, True), "the first layer of EAGLE-3 norms two inputs"
        width, num_features = shape.hidden_size, len(wiring.feature_layers)
        assert shape.fc_inputs == num_features * wiring.target_hidden_size, "fc reads all features"
        own_embedding = nn.Embedding(embed_tokens, width) if isinstance(embed_tokens, int) else None
        super().__init__(shape, rope_config, own_embedding or embed_tokens, head, target_ids)  # type: ignore[arg-type]
        self.wiring = wiring
        self.embed_tokens = own_embedding
        self.norm = nn.Parameter(torch.ones(width))
        feature_norms = num_features if wiring.fc_norm else 0
        self.fc_norm = nn.ParameterList(torch.ones(wiring.target_hidden_size) for _ in range(feature_norms))
        self.input_norm = nn.Parameter(torch.ones(shape.fc_inputs)) if wiring.norm_before_fc else None

    @property
    def feature_layers(self) -> tuple[int, ...]:
        return self.wiring.feature_layers

    def fuse(self, features: Tensor) -> Tensor:
        """Features [B, n, F] of the target -> state [B, n, D]."""
        eps = self.shape.rms_norm_eps
        if self.input_norm is not None:
            features = rms_norm(features, self.input_norm, eps)
        if len(self.fc_norm):
            parts = features.chunk(len(self.fc_norm), -1)
            features = torch.cat(
                [rms_norm(part, norm, eps) for part, norm in zip(parts, self.fc_norm, strict=True)], -1
            )
        return self.fc(features)

    def enter(self, token_ids: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        first, eps = self.layers[0], self.shape.rms_norm_eps
        assert isinstance(first, EagleLayer), "the layers are EAGLE's"
        assert first.hidden_norm is not None, "the first layer norms two inputs"
        assert first.input_layernorm is not None, "the first layer norms two inputs"
        embedded = self._shared[0](token_ids)
        normed = rms_norm(states, first.hidden_norm, eps)
        both = torch.cat((rms_norm(embedded, first.input_layernorm, eps), normed), -1)
        return (normed if self.wiring.norm_before_residual else states), both

    def leave(self, hidden: Tensor) -> Tensor:
        return rms_norm(hidden, self.norm, self.shape.rms_norm_eps) if self.wiring.norm_output else hidden

    def before_head(self, states: Tensor) -> Tensor:
        return states if self.wiring.norm_output else rms_norm(states, self.norm, self.shape.rms_norm_eps)
