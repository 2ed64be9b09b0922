"""Native multi-token-prediction modules: decoder layers that ship with the target and read its last hidden states.

DeepSeek-V3 (2024), section 2.2, as `MtpModel` of transformers runs it. With f(q) the target's last hidden state at
position q, after its final norm, and t(q) the token there, module i = 0, 1, .. makes

    H_i(q) = norm_i(layer_i(eh_proj_i [enorm_i(embed(t(q))), hnorm_i(H_{i-1}(q - 1))]))    with H_{-1} = f

layer_i attends to what module i made of the tokens up to t(q). f is known up to the token before the root, so head(H_0)
scores the children of the root and head(H_d) those of a node at depth d. Below as many levels as there are modules the
last one is applied again, to its own output at the parent, where transformers stops drafting.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_layers import MtpLayer

from nanospec.gathered_head import GatheredHead
from nanospec.kv_cache import CachePlace, CacheRows, KVCache, as_transformers_cache
from nanospec.layer_masks import FULL, SLIDING, within_window
from nanospec.records import DraftVocab
from nanospec.target import Target
from nanospec.target_families import empty_cache, switching_position
from nanospec.tree_layout import additive_mask
from nanospec.vocab.same_head import is_same_head

NATIVE_MTP = "mtp"  # as the name of a draft: the modules in the target's own checkpoint
EXTEND_CHUNK = 512  # verified positions per pass: bounds the mask at [512, P]
MTP_TARGETS = ("deepseek_v3", "glm4_moe", "mellum")  # the supported ones whose modules transformers can build


class MtpMemory(NamedTuple):
    """The key-value buffer, a layer per module, and the state [1, 1, modules * D] after the last verified token."""

    buffer: Tensor
    last_state: Tensor


class _Pass(NamedTuple):
    """Tokens that run together: token i at row-position length + depth i of the caches, one position further in the
    text, sees `visible` bool [B, n, end]; depths of all rows behind the certain ones in `row_depth` int64 [1, m]."""

    token_ids: Tensor
    length: Tensor | int
    depth: Tensor
    visible: Tensor
    rows: CacheRows
    row_depth: Tensor


class MtpDrafter(nn.Module):
    """The native MTP modules of a target as a drafter with key-value caches of its own; a `FixedShapeDrafter`.

    A state [B, n, m * D] holds the outputs H_d, H_{d+1}, .. of the modules that a token at depth d went through. The
    first one is what the head reads; module d + 1 reads it at the next token, module d + 2 the second one, and so on.

    num_modules    of the weights; the target's config must claim as many
    own_embedding  the modules have an embedding of their own; otherwise they read the target's (not owned)
    own_head       the same for output rows

    Raises NotImplementedError for a target whose modules cannot be built, or whose rotations change with the length of
    a request; ValueError for another number of modules than the config says.
    """

    name = NATIVE_MTP
    target_ids: None = None  # row i of the head scores id i

    def __init__(self, target: Target, num_modules: int, own_embedding: bool = False, own_head: bool = False) -> None:
        super().__init__()
        _refuse_target(target, num_modules)
        decoder, self.config = target.model.get_decoder(), target.model.config.get_mtp_config()
        layer_class, norm_class = type(decoder.layers[-1]), type(decoder.norm)
        self.layers = nn.ModuleList(MtpLayer(self.config, layer_class, norm_class, i) for i in range(num_modules))
        vocab_size, self.hidden_size = target.head_weight.shape
        self.embed_tokens = nn.Embedding(vocab_size, self.hidden_size) if own_embedding else None
        self.lm_head = nn.Linear(self.hidden_size, vocab_size, bias=False) if own_head else None
        # In a tuple, so that the target's weights are not ours to move or save.
        self._shared = (target.model, GatheredHead(target.head_weight, target.head_bias))
        self._own_head: tuple[GatheredHead, ...] = ()
        self._cache: KVCache | None = None
        self._last_state: Tensor | None = None

    @property
    def num_modules(self) -> int:
        return len(self.layers)

    @property
    def dtype(self) -> torch.dtype:
        return self._weight.dtype

    @property
    def state_size(self) -> int:
        return self.num_modules * self.hidden_size

    @property
    def head(self) -> GatheredHead:
        """Over the target's head, or over its own wherever that lies now."""
        if self.lm_head is None:
            return self._shared[1]
        if not self._own_head or not is_same_head(self._own_head[0].weight, self.lm_head.weight):
            self._own_head = (GatheredHead(self.lm_head.weight),)
        return self._own_head[0]

    @property
    def cache(self) -> KVCache:
        """Row r holds the token at position r + 1. Module i has nothing to say of positions up to i: masked rows."""
        if self._cache is None or not self._cache.fits(self._weight):
            self._cache = empty_cache(self._shared[0], self.num_modules)
        return self._cache

    def with_own_cache(self) -> MtpDrafter:
        """A drafter over the same weights that another request's drafting does not disturb."""
        other = copy.copy(self)
        other._cache = other._last_state = None
        return other

    def reset(self, capacity: int) -> None:
        self.cache.reset(capacity)
        if self._last_state is None or not self.cache.fits(self._last_state):
            with torch.inference_mode(False):
                self._last_state = self._weight.new_zeros(1, 1, self.state_size)
        self._last_state.zero_()

    def resume(self, num_tokens: int, capacity: int) -> int:
        """As `Resumable.resume`; 0 for several modules: a later one reads what an earlier one made of the last token,
        which is not kept."""
        if self.num_modules > 1 or self.cache.length < num_tokens:
            return 0
        self.cache.resume(num_tokens, capacity)
        return num_tokens

    @torch.no_grad()
    def extend(self, token_ids: Tensor, features: Tensor) -> Tensor:
        last_state = self.memory().last_state
        chunks = zip(token_ids.split(EXTEND_CHUNK, 1), features.split(EXTEND_CHUNK, 1), strict=True)
        for ids, feature in chunks:
            start, length = self.cache.length, ids.shape[1]
            depth = torch.arange(length, device=ids.device)[None]
            visible = torch.arange(start + length, device=ids.device) <= start + depth[:, :, None]
            tokens = _Pass(ids, start, depth, visible, self.cache.rows(length), depth)
            last_state.copy_(self._run_verified(tokens, feature, last_state)[:, -1:])
            self.cache.commit(length)
        return last_state.clone()

    @torch.no_grad()
    def advance(self, token_ids: Tensor, states: Tensor, depth: int, visible: Tensor) -> Tensor:
        cache, num_tokens = self.cache, token_ids.shape[1]
        seen = torch.cat((visible.new_ones(*visible.shape[:2], cache.length), visible), -1)
        rows = cache.rows(num_tokens, behind=visible.shape[-1] - num_tokens)
        return self._run_level(token_ids, states, depth, seen, cache.length, rows)

    def memory(self) -> MtpMemory:
        assert self._last_state is not None, "reset() must come before the first token"
        return MtpMemory(self.cache.buffer, self._last_state)

    @torch.no_grad()
    def advance_at(
        self, token_ids: Tensor, states: Tensor, depth: int, visible: Tensor, place: CachePlace, memory: MtpMemory
    ) -> Tensor:
        rows = place.rows(memory.buffer, token_ids.shape[1], behind=visible.shape[-1] - token_ids.shape[1])
        return self._run_level(token_ids, states, depth, place.visible(visible), place.length, rows)

    @torch.no_grad()
    def extend_at(
        self, token_ids: Tensor, features: Tensor, num_tokens: Tensor, place: CachePlace, memory: MtpMemory
    ) -> Tensor:
        count = token_ids.shape[1]
        causal = torch.ones(1, count, count, dtype=torch.bool, device=token_ids.device).tril()
        depth, rows = torch.arange(count, device=token_ids.device)[None], place.rows(memory.buffer, count)
        tokens = _Pass(token_ids, place.length, depth, place.visible(causal), rows, depth)
        state = self._run_verified(tokens, features, memory.last_state).index_select(1, num_tokens - 1)
        memory.last_state.copy_(state)
        return state

    def commit(self, num_tokens: int) -> None:
        self.cache.commit(num_tokens)

    def clear_uncertain(self) -> None:
        self.cache.clear_uncertain()

    def logits(self, states: Tensor, vocab: DraftVocab) -> Tensor:
        return self.head(states[..., : self.hidden_size].contiguous(), vocab)

    @property
    def _weight(self) -> Tensor:
        first = self.layers[0]
        assert isinstance(first, MtpLayer), "the modules are those of transformers"
        return first.eh_proj.weight

    def _run_verified(self, tokens: _Pass, features: Tensor, last_state: Tensor) -> Tensor:
        """All modules over verified tokens behind the one with `last_state`; features [B, n, D] -> states."""
        embedded, hidden, outputs = self._embed(tokens.token_ids), features, []
        for index, before in enumerate(last_state.split(self.hidden_size, -1)):
            outputs.append(self._run_module(index, tokens, embedded, hidden))
            hidden = torch.cat((before, outputs[-1][:, :-1]), 1)
        return torch.cat(outputs, -1)

    def _run_level(
        self, token_ids: Tensor, states: Tensor, depth: int, visible: Tensor, length: Tensor | int, rows: CacheRows
    ) -> Tensor:
        """One level behind the levels before, all of as many tokens: those at tree depth d have row-position
        length + d - 1. The first module is the one that is scored here; the others prepare for the levels below."""
        levels = torch.arange(depth, device=token_ids.device).expand(token_ids.shape[0], -1)
        row_depth, own_depth = levels.repeat_interleave(token_ids.shape[1], 1), torch.full_like(token_ids, depth - 1)
        tokens, embedded = _Pass(token_ids, length, own_depth, visible, rows, row_depth), self._embed(token_ids)
        modules = range(min(depth, self.num_modules - 1), self.num_modules)
        inputs = zip(modules, states.split(self.hidden_size, -1), strict=False)
        return torch.cat([self._run_module(index, tokens, embedded, hidden) for index, hidden in inputs], -1)

    def _run_module(self, index: int, tokens: _Pass, embedded: Tensor, hidden: Tensor) -> Tensor:
        """Output [B, n, D] of one module; embedded, hidden [B, n, D] as in the formula above."""
        positions = tokens.length + tokens.depth + 1
        output: Tensor = self.layers[index](
            embedded,
            hidden,
            position_embeddings=self._rotation(index, embedded, positions),
            attention_mask=self._mask(index, tokens),
            position_ids=positions,
            past_key_values=as_transformers_cache(tokens.rows),
        )
        return output

    def _embed(self, token_ids: Tensor) -> Tensor:
        embedding = self.embed_tokens or self._shared[0].get_input_embeddings()
        embedded: Tensor = embedding(token_ids)
        return embedded

    def _rotation(self, index: int, embedded: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        kind = {} if "rope_type" in self.config.rope_parameters else {"layer_type": self._kind(index)}
        rotation: tuple[Tensor, Tensor] = self._shared[0].get_decoder().rotary_emb(embedded, positions, **kind)
        return rotation

    def _mask(self, index: int, tokens: _Pass) -> Tensor:
        """Additive mask [B, 1, n, end] of one module."""
        visible = tokens.visible
        if index:
            rows = torch.arange(visible.shape[2], device=visible.device)
            visible = visible & (rows >= index) | (rows == tokens.rows.row_ids[:, None])  # no token sees nothing
        if self._kind(index) == SLIDING:
            window = self.config.sliding_window
            visible = within_window(visible, tokens.length, tokens.depth, window, tokens.row_depth)
        return additive_mask(visible, self.dtype)[:, None]

    def _kind(self, index: int) -> str:
        """Of a module's layer: FULL or SLIDING attention."""
        kinds = getattr(self.config, "layer_types", None)
        return FULL if kinds is None else kinds[index]


def _refuse_target(target: Target, num_modules: int) -> None:
    model_type, declared = target.config.model_type, getattr(target.config, "num_mtp_layers", None)
    if model_type not in MTP_TARGETS:
        raise NotImplementedError(
            f"target model_type must be one of {', '.join(MTP_TARGETS)} for native MTP modules, got {model_type!r}"
        )
    if switching_position(target.model) is not None:
        raise NotImplementedError(
            "target rope_type must not depend on the length of a request with native MTP modules, got 'longrope'"
        )
    if declared != num_modules:
        raise ValueError(
            f"target config num_mtp_layers must be {num_modules}, as many as there are MTP modules, got {declared!r}"
        )
