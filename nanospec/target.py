"""The model whose output is wanted: a Hugging Face causal language model, run over trees."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nanospec.graph_compiler import compile_apart, mark_growing
from nanospec.kv_cache import CachePlace, CacheRows, KVCache, as_transformers_cache
from nanospec.ops.blocked_topk import blocked_topk
from nanospec.ops.weight_first import columns
from nanospec.records import DraftTree, Verdict
from nanospec.target_families import empty_cache, layer_masks, logit_soft_cap, refuse_unsupported, switching_position
from nanospec.tensor_parallel import ranks_of

PREFILL_CHUNK = 512  # positions per pass of the body: bounds the mask at [512, P]
HEAD_CHUNK = 64  # positions per pass of the head: bounds the logits at [64, V]


class Prefill(NamedTuple):
    """features [1, P, F] of every prompt position; top_ids int64 [P, k]; last_logits [1, V] after the last position."""

    features: Tensor
    top_ids: Tensor
    last_logits: Tensor


class Verification(NamedTuple):
    """At every node: logits [B, T, V], features [B, T, F], the best ids int64 [B, T, k] and their logits [B, T, k].

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

    feature_layers: None for the last hidden state after its norm (F = D); else the layers whose inputs, un-normed and
    side by side, are the features (F = D times their number). The input of layer i is the output of layer i - 1.

    Raises ValueError for feature layers that repeat or that the model lacks; NotImplementedError, by name, for
    architectures, layers and attention kernels that are wrong with trees, and for what `ranks_of` refuses.
    """

    def __init__(
        self, model: PreTrainedModel, compiled_by: str | None = None, feature_layers: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        refuse_unsupported(model, compiled_by)
        self.ranks = ranks_of(model)  # the processes that it is sharded over
        if compiled_by is not None and self.ranks.size > 1:
            raise NotImplementedError(f"compile must be False with a tensor-parallel target, got {compiled_by!r}")
        self.model, self.compiled_by = model.eval(), compiled_by
        self.feature_layers = None if feature_layers is None else tuple(feature_layers)
        if self.feature_layers is not None:
            check_feature_layers(self.feature_layers, self.config.num_hidden_layers)
        self.logit_soft_cap = logit_soft_cap(model)
        self._masks, self._switching_position = layer_masks(model), switching_position(model)
        self._cache: KVCache | None = None
        self._compiled_passes: dict[int, Callable[..., Verification]] = {}

    @property
    def config(self):
        """Of the text model, where the model has others too."""
        return self.model.config.get_text_config()

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
        """Tokens that a request may span. With longrope: up to where the model would rotate all of them otherwise."""
        window = self.config.max_position_embeddings
        return window if self._switching_position is None else min(window, self._switching_position)

    @property
    def cache(self) -> KVCache:
        if self._cache is None or not self._cache.fits(self.head_weight):
            self._cache = empty_cache(self.model, self.config.num_hidden_layers)
        return self._cache

    def for_batch(self, batch_size: int) -> Target:
        """A target over the same model, not compiled, whose cache holds so many sequences: for `judge` at a place."""
        other = Target(self.model, None, self.feature_layers)
        other._cache = self.cache.for_batch(batch_size)
        return other

    def reset(self, capacity: int) -> int:
        """Forget the last request; room for `capacity` tokens, the nodes of one tree included. Returns its turn."""
        self.cache.reset(capacity)
        return self.cache.num_resets

    def resume(self, length: int, capacity: int) -> int:
        """As `reset`, but the first `length` tokens of the last request stay: the next one begins with them."""
        self.cache.resume(length, capacity)
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
        Raises ValueError for a prompt that reaches behind the switch of longrope.
        """
        self._refuse_behind_switch(self.cache.length + input_ids.shape[1])
        hidden, features = self._read(input_ids)
        top_ids = input_ids.new_empty(0, num_top)
        if num_top:
            parts = hidden[0].split(HEAD_CHUNK)
            top_ids = torch.cat([self._search(part, num_top, needs_logits=False)[2] for part in parts])
        return Prefill(features, top_ids, self.head(hidden[:, -1]))

    @torch.no_grad()
    def read(self, token_ids: Tensor) -> Tensor:
        """Take in int64 [1, n] behind the certain tokens and make them certain; last hidden states [1, n, D]. No head
        runs."""
        return self._read(token_ids)[0]

    @torch.no_grad()
    def hidden_states(
        self,
        token_ids: Tensor,
        length: Tensor | int,
        depth: Tensor,
        visible: Tensor,
        rows: CacheRows,
        row_depth: Tensor,
    ) -> Tensor:
        """Last hidden states [B, n, D] of a pass that leaves its rows uncertain, without a head and never compiled.

        token_ids, depth int64 [B, n]: tokens at positions length + depth; visible bool [B, n, rows.end]: what they see;
        row_depth int64 [B, m]: depths of the m rows behind the certain ones, these tokens last.
        """
        masks = self._masks.build(visible, length, depth, self.dtype, row_depth)
        return self._run_body(token_ids, self._positions(length, depth), masks, rows)[0]

    @torch.no_grad()
    def judge(
        self, tree: DraftTree, num_top: int = 1, place: CachePlace | None = None, needs_logits: bool = True
    ) -> Verification:
        """One pass over all nodes of the tree; the rows written stay uncertain until `cache.compact`.

        place: where, if only the device knows; None: behind the tokens that the cache counts. needs_logits: False where
        the best ids are all that will be read: logits may then lie in memory in whatever order is found fastest.
        """
        token_ids, nodes = tree.token_ids.clamp(min=0), tree.ancestor_mask
        if place is not None:
            rows = place.rows(self.cache.buffer, token_ids.shape[1])
            return self._run(token_ids, place.length, tree.depth, place.visible(nodes), rows, num_top, needs_logits)
        length = self.cache.length
        visible = torch.cat((nodes.new_ones(*nodes.shape[:2], length), nodes), -1)
        rows = self.cache.rows(token_ids.shape[1])
        return self._run(token_ids, length, tree.depth, visible, rows, num_top, needs_logits)

    @torch.no_grad()
    def decode(self, token_id: Tensor) -> Tensor:
        """Plain decoding of one token, int64 [1, 1] -> logits [1, V]."""
        cache = self.cache
        self._refuse_behind_switch(cache.length + 1)
        visible = torch.ones(1, 1, cache.length + 1, dtype=torch.bool, device=token_id.device)
        depth = torch.zeros_like(token_id)
        logits = self._run(token_id, cache.length, depth, visible, cache.rows(1), num_top=0).logits
        cache.commit(1)
        return logits[:, 0]

    def settle(self, output: Verification, verdict: Verdict) -> tuple[Verification, Verdict]:
        """Best ids, their logits and the verdict as the first of the processes that share this target has them: of what
        follows from logits, all that a decoding loop goes on with. Logits and features stay each process's own."""
        if self.ranks.size == 1:
            return output, verdict
        top_ids, top_values, *parts = self.ranks.agree(output.top_ids, output.top_values, *verdict)
        return output._replace(top_ids=top_ids, top_values=top_values), Verdict(*parts)

    def head(self, hidden: Tensor) -> Tensor:
        """Last hidden states after their norm [.., D] -> logits [.., V], capped where the model's own forward does."""
        return self._capped(self.model.get_output_embeddings()(hidden))

    def _capped(self, logits: Tensor) -> Tensor:
        cap = self.logit_soft_cap
        return logits if cap is None else (logits / cap).tanh() * cap

    def _read(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Last hidden states [1, n, D] and features [1, n, F] of tokens that become certain."""
        last_states, features = [], []
        for chunk in token_ids.split(PREFILL_CHUNK, dim=1):
            start, length = self.cache.length, chunk.shape[1]
            depth = torch.arange(length, device=chunk.device)[None]
            visible = torch.arange(start + length, device=chunk.device) <= start + depth[:, :, None]
            masks = self._masks.build(visible, start, depth, self.dtype)
            last_state, feature = self._run_body(chunk, self._positions(start, depth), masks, self.cache.rows(length))
            last_states.append(last_state)
            features.append(feature)
            self.cache.commit(length)
        hidden = torch.cat(last_states, 1)
        return hidden, hidden if self.feature_layers is None else torch.cat(features, 1)

    def _refuse_behind_switch(self, num_tokens: int) -> None:
        if self._switching_position is not None and num_tokens > self.context_window:
            raise ValueError(
                f"target context must be at most {self.context_window} tokens, where longrope switches, "
                f"got {num_tokens}"
            )

    def _positions(self, length: Tensor | int, depth: Tensor) -> Tensor:
        """Positions of tokens `depth` behind `length`. With longrope those behind the context window, which enter no
        output, share its last one: further on they would make the model rotate the whole pass otherwise."""
        positions = (length[:, None] if isinstance(length, Tensor) else length) + depth
        return positions if self._switching_position is None else positions.clamp(max=self.context_window - 1)

    def _run(
        self,
        token_ids: Tensor,
        length: Tensor | int,
        depth: Tensor,
        visible: Tensor,
        rows: CacheRows,
        num_top: int,
        needs_logits: bool = True,
    ) -> Verification:
        """One pass over tokens `depth` behind `length` certain ones that see `visible` bool [B, n, rows.end], by the
        compiled graph where there is one."""
        positions, buffer, row_ids = self._positions(length, depth), rows.buffer, rows.row_ids
        masks = self._masks.build(visible, length, depth, self.dtype)
        if self.compiled_by is None:
            return self._pass(token_ids, positions, buffer, row_ids, masks, num_top, needs_logits)
        if num_top not in self._compiled_passes:
            self._compiled_passes[num_top] = self._compile_pass(num_top)
        if token_ids.shape[1] > 1:
            token_ids, positions = mark_growing(token_ids, 1), mark_growing(positions, 1)
            row_ids, masks = mark_growing(row_ids, 0), tuple(mark_growing(mask, 2) for mask in masks)
        masks = tuple(mark_growing(mask, 3) for mask in masks)
        return self._compiled_passes[num_top](token_ids, positions, mark_growing(buffer, 4), row_ids, *masks)

    def _compile_pass(self, num_top: int) -> Callable[..., Verification]:
        def target_pass(
            token_ids: Tensor, positions: Tensor, buffer: Tensor, row_ids: Tensor, *masks: Tensor
        ) -> Verification:
            return self._pass(token_ids, positions, buffer, row_ids, masks, num_top)

        assert self.compiled_by is not None, "only called to compile"
        # Rounded wherever eager code rounds: the tokens of bfloat16 stay those of the eager target.
        options = {"emulate_precision_casts": True} if self.compiled_by == "inductor" else None
        return compile_apart(target_pass, self.compiled_by, options)

    def _pass(
        self,
        token_ids: Tensor,
        positions: Tensor,
        buffer: Tensor,
        row_ids: Tensor,
        masks: tuple[Tensor, ...],
        num_top: int,
        needs_logits: bool = True,
    ) -> Verification:
        """token_ids, positions int64 [B, n], row_ids int64 [n] or [B, n]: rows of the buffer to write, masks
        [B, 1, n, end]."""
        rows = CacheRows(buffer, row_ids, masks[0].shape[3])
        hidden, features = self._run_body(token_ids, positions, masks, rows)
        shape = (*token_ids.shape, num_top)
        if num_top == 0:
            logits = self.head(hidden)
            return Verification(logits, features, token_ids.new_empty(shape), logits.new_empty(shape))
        logits, values, ids = self._search(hidden, num_top, needs_logits)
        return Verification(logits, features, ids.view(shape), values.view(shape))

    def _search(self, hidden: Tensor, num_top: int, needs_logits: bool) -> tuple[Tensor, Tensor, Tensor]:
        """hidden [.., D] of n tokens -> logits [.., V], the best of them and their ids [n, k]."""
        flat = hidden.flatten(0, -2)
        by_column = None if needs_logits else columns(flat, self.model.get_output_embeddings())
        if by_column is None:
            logits = self.head(hidden)
            return logits, *blocked_topk(logits.flatten(0, -2), num_top)
        by_column, num_rows = self._capped(by_column), flat.shape[0]
        values, ids = blocked_topk(by_column, num_top)
        return by_column[:num_rows].unflatten(0, hidden.shape[:-1]), values[:num_rows], ids[:num_rows]

    def _run_body(
        self, token_ids: Tensor, positions: Tensor, masks: tuple[Tensor, ...], rows: CacheRows
    ) -> tuple[Tensor, Tensor]:
        """Last hidden state after its norm [B, n, D], features [B, n, F]."""
        layers = self.feature_layers
        output = self.model.get_decoder()(
            input_ids=token_ids,
            attention_mask=self._masks.as_argument(masks),
            position_ids=positions,
            past_key_values=as_transformers_cache(rows),
            use_cache=True,
            output_hidden_states=None if layers is None else list(layers),
        )
        if layers is None:
            return output.last_hidden_state, output.last_hidden_state
        return output.last_hidden_state, torch.cat([output.hidden_states[layer] for layer in layers], -1)


def check_feature_layers(feature_layers: tuple[int, ...], num_layers: int) -> None:
    """Raises ValueError unless they are distinct layers of a model of `num_layers`, TypeError for no whole numbers."""
    if any(isinstance(layer, bool) or not isinstance(layer, int) for layer in feature_layers):
        raise TypeError(f"feature_layers must be whole numbers, got {reprlib.repr(feature_layers)}")
    distinct = len(set(feature_layers)) == len(feature_layers) > 0
    if not distinct or not all(0 <= layer < num_layers for layer in feature_layers):
        raise ValueError(
            f"feature_layers must be distinct layers between 0 and {num_layers - 1} of the target, got "
            f"{reprlib.repr(feature_layers)}"
        )
