"""EAGLE-1/2 draft model: one decoder layer over (embedding of the token, feature of the position before it).

EAGLE (Li et al. 2024), figure 6: the feature is the target's last hidden state after its final norm; below the root the
layer's own un-normed output takes its place. The head is the target's.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from nanospec.gathered_head import GatheredHead
from nanospec.kv_cache import CachePlace, CacheRows, KVCache
from nanospec.ops.weight_first import WeightFirstLinear
from nanospec.records import DraftVocab
from nanospec.tree_layout import additive_mask
from nanospec.vocab.same_head import is_same_head

EXTEND_CHUNK = 512  # verified positions per pass: bounds the mask at [512, P]


@dataclass(frozen=True)
class EagleShape:
    """What the tensors of an EAGLE checkpoint leave open, as read from its config."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_layers: int
    rms_norm_eps: float
    hidden_act: str
    fc_bias: bool
    qkv_bias: bool
    qk_norm: bool = False
    input_norm: bool = False  # of the first layer, before its attention
    embed_norm: bool = False
    head_norm: bool = False
    two_inputs: bool = False  # EAGLE-3: the first attention reads embedding and feature side by side
    fc_inputs: int = 0  # columns of fc; 0: two times hidden_size


class DraftMemory(NamedTuple):
    """The key-value buffer of a drafter, and the rotation of every position: cos, sin [capacity, head_dim]."""

    buffer: Tensor
    cos: Tensor
    sin: Tensor

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions int64 [n] -> cos, sin [n, head_dim]; of every sequence [B, n] -> [B, 1, n, head_dim]"""
        if positions.dim() == 1:
            return self.cos.index_select(0, positions), self.sin.index_select(0, positions)
        cos, sin = (table.index_select(0, positions.flatten()) for table in (self.cos, self.sin))
        return cos.unflatten(0, positions.shape)[:, None], sin.unflatten(0, positions.shape)[:, None]


class EagleLayer(nn.Module):
    """Llama decoder layer with fused projections. The first layer of EAGLE-1 has no norm before its attention; where a
    draft follows Qwen3, queries and keys are normed."""

    def __init__(self, shape: EagleShape, input_norm: bool, two_inputs: bool = False) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
        self.eps = shape.rms_norm_eps
        width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
        self.input_layernorm = nn.Parameter(torch.ones(shape.hidden_size)) if input_norm else None
        self.hidden_norm = nn.Parameter(torch.ones(shape.hidden_size)) if two_inputs else None
        self.qkv_proj = WeightFirstLinear(shape.hidden_size * (1 + two_inputs), width, bias=shape.qkv_bias)
        self.o_proj = WeightFirstLinear(shape.num_heads * shape.head_dim, shape.hidden_size, bias=False)
        self.post_attention_layernorm = nn.Parameter(torch.ones(shape.hidden_size))
        self.gate_up_proj = WeightFirstLinear(
            shape.hidden_size, 2 * shape.intermediate_size, bias=False, as_it_lies=True
        )
        self.down_proj = WeightFirstLinear(shape.intermediate_size, shape.hidden_size, bias=False)
        self.act = ACT2FN[shape.hidden_act]
        self.q_norm = nn.Parameter(torch.ones(shape.head_dim)) if shape.qk_norm else None
        self.k_norm = nn.Parameter(torch.ones(shape.head_dim)) if shape.qk_norm else None

    def forward(
        self, hidden: Tensor, rotation: tuple[Tensor, Tensor], attend, attention_input: Tensor | None = None
    ) -> Tensor:
        """hidden [B, n, D]; rotation cos, sin [n, head_dim] or [B, 1, n, head_dim]; attend(q, k, v) ->
        [B, heads, n, head_dim].

        attention_input: what the projections read, where that is not the norm of `hidden`.
        """
        batch, length, width = hidden.shape
        if attention_input is None:
            norm = self.input_layernorm
            attention_input = hidden if norm is None else rms_norm(hidden, norm, self.eps)
        heads = self.qkv_proj(attention_input).view(batch, length, -1, self.head_dim).transpose(1, 2)
        split = self.num_heads + self.num_kv_heads
        turned = rotate(self._norm_heads(heads[:, :split]), *rotation)
        mixed = attend(turned[:, : self.num_heads], turned[:, self.num_heads :], heads[:, split:])
        hidden = hidden + self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        gate, up = self.gate_up_proj(rms_norm(hidden, self.post_attention_layernorm, self.eps)).chunk(2, -1)
        return hidden + self.down_proj(self.act(gate) * up)

    def _norm_heads(self, heads: Tensor) -> Tensor:
        """Queries and keys [B, heads, n, head_dim], normed as in Qwen3 where the layer has such norms."""
        if self.q_norm is None or self.k_norm is None:
            return heads
        query, key = heads[:, : self.num_heads], heads[:, self.num_heads :]
        return torch.cat((rms_norm(query, self.q_norm, self.eps), rms_norm(key, self.k_norm, self.eps)), 1)


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(hidden, (hidden.shape[-1],), weight, eps)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding in the half-split layout: x cos + (-x2, x1) sin. heads [B, h, n, d], cos/sin [n, d] or
    [B, 1, n, d]."""
    half = heads.shape[-1] // 2
    return heads * cos + torch.cat((-heads[..., half:], heads[..., :half]), -1) * sin


def _refuse_changing_angles(rope_config: LlamaConfig) -> None:
    """The angles of a position are made once, for all requests."""
    rope_type = (rope_config.rope_parameters or {}).get("rope_type", "default")
    if "dynamic" in rope_type or rope_type == "longrope":
        raise NotImplementedError(
            f"draft rope_type must not depend on the length of a request, got {rope_type!r}: "
            "angles are made once and for all positions"
        )


class EagleDrafter(nn.Module):
    """EAGLE-1/2 drafter with its own key-value cache; implements `Drafter`.

    embed_tokens  the target's embedding module (shared, not owned)
    head          the target's head (shared, not owned), or the number of rows of a head of its own
    target_ids    int64 [rows of the head], the id of the target that each row scores; None: row i scores id i

    Raises NotImplementedError for rotary settings whose angles depend on the length of a request.
    """

    name = "eagle"
    target_ids: Tensor | None

    def __init__(
        self,
        shape: EagleShape,
        rope_config: LlamaConfig,
        embed_tokens: nn.Module,
        head: GatheredHead | int,
        target_ids: Tensor | None = None,
    ) -> None:
        super().__init__()
        _refuse_changing_angles(rope_config)
        self.shape = shape
        self.fc = WeightFirstLinear(shape.fc_inputs or 2 * shape.hidden_size, shape.hidden_size, bias=shape.fc_bias)
        self.layers = nn.ModuleList(
            EagleLayer(shape, shape.input_norm or index > 0, shape.two_inputs and index == 0)
            for index in range(shape.num_layers)
        )
        self.embed_layernorm = nn.Parameter(torch.ones(shape.hidden_size)) if shape.embed_norm else None
        self.lm_head_layernorm = nn.Parameter(torch.ones(shape.hidden_size)) if shape.head_norm else None
        self.lm_head = nn.Linear(shape.hidden_size, head, bias=False) if isinstance(head, int) else None
        self._own_head: tuple[GatheredHead, ...] = ()
        self.register_buffer("target_ids", target_ids, persistent=False)
        # In tuples, so that the target's weights are not ours to move or save, and angles stay float32 in any dtype.
        self._shared = (embed_tokens, head)
        with torch.device("cpu"):  # also where the weights are made on the meta device
            self._rotary = (LlamaRotaryEmbedding(rope_config),)
        self._cache: KVCache | None = None
        self._rotation_table: tuple[Tensor, Tensor] | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.fc.weight.dtype

    @property
    def vocab_size(self) -> int:
        """Ids that it reads: the target's."""
        weight = self._shared[0].weight
        assert isinstance(weight, Tensor), "an embedding has a weight [V, D]"
        return weight.shape[0]

    @property
    def rope_config(self) -> LlamaConfig:
        return self._rotary[0].config

    @property
    def state_size(self) -> int:
        return self.shape.hidden_size

    @property
    def cache(self) -> KVCache:
        shape, weight = self.shape, self.fc.weight
        if self._cache is None or not self._cache.fits(weight):
            self._cache = KVCache(shape.num_layers, shape.num_kv_heads, shape.head_dim, weight.dtype, weight.device)
        return self._cache

    @property
    def head(self) -> GatheredHead:
        """Over the target's head, or over its own wherever that lies now."""
        if self.lm_head is None:
            assert isinstance(self._shared[1], GatheredHead), "no number of rows without a head of its own"
            return self._shared[1]
        if not self._own_head or not is_same_head(self._own_head[0].weight, self.lm_head.weight):
            self._own_head = (GatheredHead(self.lm_head.weight),)
        return self._own_head[0]

    def with_own_cache(self, batch_size: int = 1) -> EagleDrafter:
        """A drafter over the same weights that another request's drafting does not disturb; with several sequences only
        its passes of fixed shape serve, and `grow` makes room."""
        other = copy.copy(self)
        other._cache, other._rotation_table = self.cache.for_batch(batch_size), None
        return other

    def reset(self, capacity: int) -> None:
        self.cache.reset(capacity)
        self._prepare_rotation(capacity)

    def resume(self, num_tokens: int, capacity: int) -> int:
        if self.cache.length < num_tokens:
            return 0
        self._prepare_rotation(capacity)
        self.cache.resume(num_tokens, capacity)
        return num_tokens

    def grow(self, capacity: int) -> None:
        """Room for at least `capacity` tokens of every sequence; nothing is forgotten."""
        self.cache.grow(capacity)
        self._prepare_rotation(capacity)

    def _prepare_rotation(self, capacity: int) -> None:
        table = self._rotation_table
        if table is None or table[0].shape[0] < capacity or not self.cache.fits(table[0]):
            with torch.inference_mode(False):
                self._rotation_table = self.rotation(capacity)

    def rotation(self, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin [length, head_dim] of the positions from 0 on, in the drafter's dtype."""
        weight = self.fc.weight
        cos, sin = self._rotary[0](torch.empty(0, dtype=weight.dtype), torch.arange(length)[None])
        return cos[0].to(weight.device), sin[0].to(weight.device)

    def angles(self, length: int) -> tuple[Tensor, Tensor]:
        """The first `length` rows of the rotation that `reset` prepared."""
        assert self._rotation_table is not None, "reset() must come before the first token"
        return self._rotation_table[0][:length], self._rotation_table[1][:length]

    @torch.no_grad()
    def extend(self, token_ids: Tensor, features: Tensor) -> Tensor:
        chunks = zip(token_ids.split(EXTEND_CHUNK, 1), features.split(EXTEND_CHUNK, 1), strict=True)
        for ids, feature in chunks:
            state = self._extend_chunk(ids, self.fuse(feature))
        return state

    def _extend_chunk(self, token_ids: Tensor, features: Tensor) -> Tensor:
        start, length = self.cache.length, token_ids.shape[1]
        mask = None
        if length > 1:
            positions = torch.arange(start + length, device=token_ids.device)
            mask = additive_mask(positions <= positions[start:, None], self.dtype)[None, None]
        cos, sin = self.angles(start + length)
        states = self._run(token_ids, features, (cos[start:], sin[start:]), mask, self.cache.rows(length))
        self.cache.commit(length)
        return states[:, -1:]

    @torch.no_grad()
    def advance(self, token_ids: Tensor, states: Tensor, depth: int, visible: Tensor) -> Tensor:
        cache, num_tokens = self.cache, token_ids.shape[1]
        seen = torch.cat((visible.new_ones(*visible.shape[:2], cache.length), visible), -1)
        mask = additive_mask(seen, self.dtype)[:, None]
        cos, sin = self.angles(cache.length + depth)
        rows = cache.rows(num_tokens, behind=visible.shape[-1] - num_tokens)
        return self._run(token_ids, states, (cos[-1:], sin[-1:]), mask, rows)

    @torch.no_grad()
    def advance_at(
        self, token_ids: Tensor, states: Tensor, depth: int, visible: Tensor, place: CachePlace, memory: DraftMemory
    ) -> Tensor:
        """`advance` where only the device knows how many tokens are certain; of itself it reads nothing but weights."""
        rows = place.rows(memory.buffer, token_ids.shape[1], behind=visible.shape[-1] - token_ids.shape[1])
        mask = additive_mask(place.visible(visible), self.dtype)[:, None]
        positions = place.length + (depth - 1)
        positions = positions if positions.shape[0] == 1 else positions[:, None]
        return self._run(token_ids, states, memory.angles(positions), mask, rows)

    @torch.no_grad()
    def extend_at(
        self, token_ids: Tensor, features: Tensor, num_tokens: Tensor, place: CachePlace, memory: DraftMemory
    ) -> Tensor:
        """`extend` by the first `num_tokens` int64 [B] of token_ids; the rows of the rest stay uncertain. Counted by
        `commit`."""
        count = token_ids.shape[1]
        rows = place.rows(memory.buffer, count)
        causal = torch.ones(1, count, count, dtype=torch.bool, device=token_ids.device).tril()
        mask = additive_mask(place.visible(causal), self.dtype)[:, None]
        states = self._run(token_ids, self.fuse(features), memory.angles(rows.row_ids), mask, rows)
        return states.gather(1, (num_tokens - 1)[:, None, None].expand(-1, -1, states.shape[-1]))

    def commit(self, num_tokens: int) -> None:
        self.cache.commit(num_tokens)

    def clear_uncertain(self) -> None:
        self.cache.clear_uncertain()

    def memory(self) -> DraftMemory:
        """What `reset` prepared, as the plain tensors that passes of fixed shape work on."""
        assert self._rotation_table is not None, "reset() must come before the first token"
        return DraftMemory(self.cache.buffer, *self._rotation_table)

    def logits(self, states: Tensor, vocab: DraftVocab) -> Tensor:
        return self.head(self.before_head(states), vocab)

    def best(self, states: Tensor, vocab: DraftVocab, k: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """The k best ids after every state, int64 [B, n, k], and their log-probabilities: see `GatheredHead.best`."""
        head_pos, log_prob = self.head.best(self.before_head(states), vocab, k, temperature)
        return head_pos if self.target_ids is None else self.target_ids[head_pos], log_prob

    def before_head(self, states: Tensor) -> Tensor:
        """What the head reads of the states [B, n, D]: EAGLE-1/2 has no norm there, speculators' variant has one."""
        norm = self.lm_head_layernorm
        return states if norm is None else rms_norm(states, norm, self.shape.rms_norm_eps)

    def _run(
        self,
        token_ids: Tensor,
        features: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None,
        rows: CacheRows,
    ) -> Tensor:
        hidden, attention_input = self.enter(token_ids, features)
        grouped = self.shape.num_heads != self.shape.num_kv_heads
        for index, layer in enumerate(self.layers):

            def attend(query: Tensor, key: Tensor, value: Tensor, index: int = index) -> Tensor:
                keys, values = rows.append(index, key, value)
                return F.scaled_dot_product_attention(query, keys, values, mask, enable_gqa=grouped)

            hidden = layer(hidden, rotation, attend, attention_input if index == 0 else None)
        return self.leave(hidden)

    def fuse(self, features: Tensor) -> Tensor:
        """What the target delivers -> what the first layer takes as state, both [B, n, .]."""
        return features

    def enter(self, token_ids: Tensor, states: Tensor) -> tuple[Tensor, Tensor | None]:
        """Input of the first layer [B, n, D], and what its attention reads where that is something else."""
        embedded = self._shared[0](token_ids)
        if self.embed_layernorm is not None:
            embedded = rms_norm(embedded, self.embed_layernorm, self.shape.rms_norm_eps)
        return self.fc(torch.cat((embedded, states.to(embedded.dtype)), -1)), None

    def leave(self, hidden: Tensor) -> Tensor:
        """Output of the last layer -> state, [B, n, D]."""
        return hidden
