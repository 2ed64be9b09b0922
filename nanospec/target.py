"""The model whose output is wanted: any Hugging Face causal language model with full attention, run over trees."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nanospec.graph_compiler import compile_apart, mark_growing
from nanospec.kv_cache import CachePlace, CacheRows, KVCache, as_transformers_cache
from nanospec.ops.blocked_topk import blocked_topk
from nanospec.records import DraftTree
from nanospec.tree_layout import additive_mask

SUPPORTED_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
TREE_ATTENTION = ("sdpa", "eager")
PREFILL_CHUNK = 512  # positions per pass of the body: bounds the mask at [512, P]
HEAD_CHUNK = 64  # positions per pass of the head: bounds the logits at [64, V]


class Prefill(NamedTuple):
    """features [1, P, D] of every prompt position; top_ids int64 [P, k]; last_logits [1, V] after the last position."""

    features: Tensor
    top_ids: Tensor
    last_logits: Tensor


class Verification(NamedTuple):
    """At every node: logits [B, T, V], features [B, T, D], the best ids int64 [B, T, k] and their logits [B, T, k].

    Column 0 of the best ids is the argmax, ties to the smallest id.
    """

    logits: Tensor
    features: Tensor
    top_ids: Tensor
    top_values: Tensor


class Target(nn.Module):
    """Prefill, tree verification and plain decoding over one preallocated key-value cache.

    compiled_by: the torch.compile backend ("inductor", "aot_eager", "eager") of tree verification and plain decoding,
    one graph for all trees and context lengths; prefill stays eager. Targets over one model do not disturb each other.

    Raises NotImplementedError, by name, for architectures, windows and attention kernels that are wrong with trees.
    """

    def __init__(self, model: PreTrainedModel, compiled_by: str | None = None) -> None:
        super().__init__()
        refuse_unsupported(model)
        self.model, self.compiled_by = model.eval(), compiled_by
        self._cache: KVCache | None = None
        self._compiled_passes: dict[int, Callable[..., Verification]] = {}

    @property
    def config(self):
        return self.model.config

    @property
    def dtype(self) -> torch.dtype:
        return self.head_weight.dtype

    @property
    def device(self) -> torch.device:
        return self.head_weight.device

    @property
    def embed_tokens(self) -> nn.Module:
        return self.model.get_input_embeddings()

    @property
    def head_weight(self) -> Tensor:
        """[V, D], the output projection; never modified."""
        return self.model.get_output_embeddings().weight

    @property
    def head_bias(self) -> Tensor | None:
        return self.model.get_output_embeddings().bias

    @property
    def vocab_size(self) -> int:
        return self.head_weight.shape[0]

    @property
    def context_window(self) -> int:
        return self.config.max_position_embeddings

    @property
    def cache(self) -> KVCache:
        if self._cache is None or not self._cache.fits(self.head_weight):
            config = self.config
            head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
            self._cache = KVCache(
                config.num_hidden_layers, config.num_key_value_heads, head_dim, self.dtype, self.device
            )
        return self._cache

    def reset(self, capacity: int) -> int:
        """Forget the last request; room for `capacity` tokens, the nodes of one tree included. Returns its turn."""
        self.cache.reset(capacity)
        return self.cache.num_resets

    def check_turn(self, turn: int) -> None:
        """RuntimeError if another request has started since `reset` returned `turn`, and so has taken the cache."""
        if self.cache.num_resets != turn:
            raise RuntimeError(
                "a request must run to its end or be dropped before another starts on the same target: "
                "this one was interrupted by another"
            )

    @torch.no_grad()
    def prefill(self, input_ids: Tensor, num_top: int = 0) -> Prefill:
        """Run the prompt, int64 [1, P]; top_ids holds the `num_top` best ids after every position.

        Logits [P, V] never exist: the head runs over 64 positions at a time, and only if num_top > 0.
        """
        all_features = self.read(input_ids)
        top_ids = input_ids.new_empty(0, num_top)
        if num_top:
            parts = all_features[0].split(HEAD_CHUNK)
            top_ids = torch.cat([blocked_topk(self.head(part), num_top)[1] for part in parts])
        return Prefill(all_features, top_ids, self.head(all_features[:, -1]))

    @torch.no_grad()
    def read(self, token_ids: Tensor) -> Tensor:
        """Take in int64 [1, n] behind the certain tokens and make them certain; features [1, n, D]. No head runs."""
        features = []
        for chunk in token_ids.split(PREFILL_CHUNK, dim=1):
            start, length = self.cache.length, chunk.shape[1]
            positions = torch.arange(start, start + length, device=chunk.device)
            visible = torch.arange(start + length, device=chunk.device) <= positions[:, None]
            features.append(self.features(chunk, positions[None], visible[None], self.cache.rows(length)))
            self.cache.commit(length)
        return torch.cat(features, 1)

    @torch.no_grad()
    def features(self, token_ids: Tensor, positions: Tensor, visible: Tensor, rows: CacheRows) -> Tensor:
        """[B, n, D] of token_ids at `positions`, int64 [B, n] each, that see `visible` bool [B, n, rows.end]; eager."""
        return self._run_body(token_ids, positions, additive_mask(visible, self.dtype)[:, None], rows)

    @torch.no_grad()
    def judge(self, tree: DraftTree, num_top: int = 1, place: CachePlace | None = None) -> Verification:
        """One pass over all nodes of the tree; the rows written stay uncertain until `cache.compact`.

        place: where, if only the device knows; None: behind the tokens that the cache counts.
        """
        token_ids, nodes = tree.token_ids.clamp(min=0), tree.ancestor_mask
        if place is not None:
            rows = place.rows(self.cache.buffer, token_ids.shape[1])
            return self._run(token_ids, place.length + tree.depth, place.visible(nodes), rows, num_top)
        length = self.cache.length
        visible = torch.cat((nodes.new_ones(*nodes.shape[:2], length), nodes), -1)
        return self._run(token_ids, length + tree.depth, visible, self.cache.rows(token_ids.shape[1]), num_top)

    @torch.no_grad()
    def decode(self, token_id: Tensor) -> Tensor:
        """Plain decoding of one token, int64 [1, 1] -> logits [1, V]."""
        cache = self.cache
        position = torch.full_like(token_id, cache.length)
        visible = torch.ones(1, 1, cache.length + 1, dtype=torch.bool, device=token_id.device)
        logits = self._run(token_id, position, visible, cache.rows(1), num_top=0).logits
        cache.commit(1)
        return logits[:, 0]

    def head(self, features: Tensor) -> Tensor:
        """features [.., D] -> logits [.., V]"""
        return self.model.get_output_embeddings()(features)

    def _run(
        self, token_ids: Tensor, positions: Tensor, visible: Tensor, rows: CacheRows, num_top: int
    ) -> Verification:
        """One pass over tokens that see `visible` bool [B, n, rows.end], by the compiled graph where there is one."""
        mask = additive_mask(visible, self.dtype)[:, None]
        buffer, row_ids = rows.buffer, rows.row_ids
        if self.compiled_by is None:
            return self._pass(token_ids, positions, mask, buffer, row_ids, num_top)
        if num_top not in self._compiled_passes:
            self._compiled_passes[num_top] = self._compile_pass(num_top)
        if token_ids.shape[1] > 1:
            token_ids, positions, mask = mark_growing(token_ids, 1), mark_growing(positions, 1), mark_growing(mask, 2)
            row_ids = mark_growing(row_ids, 0)
        inputs = token_ids, positions, mark_growing(mask, 3), mark_growing(buffer, 4), row_ids
        return self._compiled_passes[num_top](*inputs)

    def _compile_pass(self, num_top: int) -> Callable[..., Verification]:
        def target_pass(
            token_ids: Tensor, positions: Tensor, mask: Tensor, buffer: Tensor, row_ids: Tensor
        ) -> Verification:
            return self._pass(token_ids, positions, mask, buffer, row_ids, num_top)

        assert self.compiled_by is not None, "only called to compile"
        # Rounded wherever eager code rounds: the tokens of bfloat16 stay those of the eager target.
        options = {"emulate_precision_casts": True} if self.compiled_by == "inductor" else None
        return compile_apart(target_pass, self.compiled_by, options)

    def _pass(
        self, token_ids: Tensor, positions: Tensor, mask: Tensor, buffer: Tensor, row_ids: Tensor, num_top: int
    ) -> Verification:
        """token_ids, positions int64 [B, n], mask [B, 1, n, end], row_ids int64 [n]: rows of the buffer to write."""
        features = self._run_body(token_ids, positions, mask, CacheRows(buffer, row_ids, mask.shape[3]))
        logits = self.head(features)
        shape = (*token_ids.shape, num_top)
        if num_top == 0:
            return Verification(logits, features, token_ids.new_empty(shape), logits.new_empty(shape))
        values, ids = blocked_topk(logits.flatten(0, 1), num_top)
        return Verification(logits, features, ids.view(shape), values.view(shape))

    def _run_body(self, token_ids: Tensor, positions: Tensor, mask: Tensor, rows: CacheRows) -> Tensor:
        output = self.model.base_model(
            input_ids=token_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=as_transformers_cache(rows),
            use_cache=True,
        )
        return output.last_hidden_state


def refuse_model_type(model_type: str | None, argument: str = "target") -> None:
    """Raises NotImplementedError for an architecture that is not known to work with trees, listing those that are."""
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise NotImplementedError(
            f"{argument} model_type must be one of {', '.join(SUPPORTED_MODEL_TYPES)}, got {model_type!r}"
        )


def refuse_unsupported(model: PreTrainedModel) -> None:
    """Raises NotImplementedError for what would decode wrongly, naming the setting, its value and the choices."""
    config = model.config
    refuse_model_type(config.model_type)
    attention = config._attn_implementation
    if attention not in TREE_ATTENTION:
        raise NotImplementedError(
            f"target attn_implementation must be one of {', '.join(TREE_ATTENTION)}, got {attention!r}: "
            "other kernels ignore or break tree masks"
        )
    layer_types = getattr(config, "layer_types", None) or ["full_attention"]
    window = getattr(config, "sliding_window", None)
    windowed = config.model_type == "mistral" and window is not None
    if windowed or any(kind != "full_attention" for kind in layer_types):
        raise NotImplementedError(f"target must use full attention in every layer, got sliding_window={window!r}")
