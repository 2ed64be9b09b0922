"""What the plugin mixes into a draft model of vLLM's: logits over the ids of each row's request."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nanospec.checkpoints.draft_ids import read_id_list
from nanospec.checkpoints.draft_vocab_map import read_vocab_map
from nanospec.integrations.vllm.active_head import ActiveHead, HeadShard, best_ids, over_vocabulary
from nanospec.integrations.vllm.eagle_biases import FcBias, clear_biases
from nanospec.integrations.vllm.request_rows import RequestRows
from nanospec.integrations.vllm.settings import FREQUENT_IDS_FILE, VllmSettings, read_settings
from nanospec.vocab.static_list import TENSOR_NAME

log = logging.getLogger("vllm.nanospec")


class InContextDraft:
    """Mixed in before a draft model of vLLM's. Both runners call `compute_logits` or `get_top_tokens` with the hidden
    states of a batch; which requests these are, a hook in the runner has said before (`head_now().publish`).
    """

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        from nanospec.integrations.vllm.runner_hooks import install_hooks

        install_hooks()
        self._vllm_config = vllm_config
        self._settings = read_settings(os.environ, vllm_config.additional_config)
        self._head: ActiveHead | None = None
        self._is_checked = not self._settings.is_on
        self._is_loaded = False
        self.prompt_positions = self._settings.prompt_positions if self.num_top else 0
        reason = _why_no_prompts(vllm_config)
        if self._settings.is_on and self.prompt_positions and reason:
            self.leave_prompts_out(reason)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        """As vLLM's, after which the buffers exist, so that its memory profile counts them.

        vLLM reads every .safetensors file beside the draft, a list of frequent ids, too: that is no weight.
        """
        if not self._is_loaded:  # afterwards weights may be replaced one by one
            clear_biases(self)  # type: ignore[arg-type]
        loaded = super().load_weights(  # type: ignore[misc]
            (name, weight) for name, weight in weights if name != TENSOR_NAME
        )
        if self._settings.is_on and not self._is_loaded:
            self._head = self._new_head()
        self._is_loaded = True
        return loaded

    @property
    def num_top(self) -> int:
        """Of the target's best ids at a position, how many the vocabulary learns."""
        return self._settings.num_top

    @property
    def num_prompt_top(self) -> int:
        """As `num_top`, at a prompt's positions, which tell less of what follows."""
        return -(-self.num_top // 2)

    @property
    def max_num_seqs(self) -> int:
        """Requests that vLLM runs at once, at most."""
        return self._vllm_config.scheduler_config.max_num_seqs

    def leave_prompts_out(self, reason: str) -> None:
        """The vocabulary learns of prompts their text alone: `prompt_positions` is 0 from now on."""
        self.prompt_positions = 0
        log.warning("nanospec: a prompt gives its own ids, but none of the target's: %s", reason)

    def head_now(self) -> ActiveHead | None:
        """What to publish requests to; None where the plugin is off, or cannot serve this head, which is said once."""
        if not self._is_checked:
            self._is_checked = True
            reason = self._why_not()
            if reason:
                self._head = None
                log.warning("nanospec: the draft scores its full vocabulary: %s", reason)
            elif self._head is None:  # weights that were not read from a file
                self._head = self._new_head()
        return self._head

    def compute_logits(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """hidden [N, D] -> [N, V], -inf outside the ids of each row's request; the full head's where there are none."""
        if self._head is None or self._head.is_full:
            return super().compute_logits(hidden_states, *args, **kwargs)  # type: ignore[misc]
        logits, ids = self._active_scores(hidden_states, *args, **kwargs)
        return over_vocabulary(logits, ids, self._draft_vocab_size())

    def get_top_tokens(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """hidden [N, D] -> int64 [N], the best of each row; nothing as wide as the vocabulary is written."""
        if self._head is None or self._head.is_full:
            return super().compute_logits(hidden_states, *args, **kwargs).argmax(-1)  # type: ignore[misc]
        return best_ids(*self._active_scores(hidden_states, *args, **kwargs))

    def _active_scores(self, hidden_states: Tensor, spec_step_idx: int = 0) -> tuple[Tensor, Tensor]:
        assert self._head is not None, "asked before"
        lm_head, hidden_states, processor = self._head_inputs(hidden_states, spec_step_idx)
        logits, ids = self._head.scores(hidden_states, lm_head.weight, _shard_of(lm_head))
        if processor.soft_cap is not None:
            logits = torch.tanh(logits / processor.soft_cap) * processor.soft_cap
        return (logits if processor.scale == 1.0 else logits * processor.scale), ids

    def _head_inputs(self, hidden_states: Tensor, spec_step_idx: int) -> tuple[Any, Tensor, Any]:
        """vLLM's head module, what it is applied to, and the processor of its logits."""
        lm_head, norm = self._lm_head_and_norm(spec_step_idx)
        processor = getattr(self, "logits_processor", None) or self.model.logits_processor  # type: ignore[attr-defined]
        return lm_head, norm(hidden_states), processor

    def _lm_head_and_norm(self, spec_step_idx: int) -> tuple[Any, Callable[[Tensor], Tensor]]:
        """The head module, and what comes before it: nothing, or the final norm of an MTP layer that keeps both."""
        inner: Any = self.model  # type: ignore[attr-defined]
        layers = getattr(inner, "layers", None)
        if isinstance(layers, nn.ModuleDict) and hasattr(inner, "mtp_start_layer_idx"):
            layer: Any = layers[str(inner.mtp_start_layer_idx + spec_step_idx % inner.num_mtp_layers)]
            if hasattr(layer, "shared_head"):
                return layer.shared_head.head, layer.shared_head
        return self.lm_head, lambda hidden_states: hidden_states  # type: ignore[attr-defined]

    def _draft_vocab_size(self) -> int:
        """Columns of the logits that vLLM's own compute_logits gives."""
        return self.config.vocab_size  # type: ignore[attr-defined]

    def _new_head(self) -> ActiveHead:
        vocab_size, d2t = self._draft_vocab_size(), getattr(self, "draft_id_to_target_id", None)
        target_ids = None if d2t is None else read_vocab_map(d2t.cpu(), None, d2t.shape[0], vocab_size)
        draft_directory = Path(self._vllm_config.speculative_config.draft_model_config.model)
        rows = RequestRows(
            vocab_size,
            self._settings.capacity,
            self.max_num_seqs,
            read_pinned_ids(self._settings, draft_directory, vocab_size),
            target_ids,
            next(self.parameters()).device,  # type: ignore[attr-defined]
        )
        log.info(
            "nanospec: %s drafts from at most %d of %d ids per request, %s",
            *(type(self).__name__, rows.tracker.capacity, vocab_size, self._settings.vocab),
        )
        return ActiveHead(rows)

    def _why_not(self) -> str | None:
        """Why this head cannot be scored row by row; None if it can."""
        from vllm.model_executor.layers.linear import UnquantizedLinearMethod
        from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

        lm_head, _ = self._lm_head_and_norm(0)
        processor = getattr(self, "logits_processor", None) or self.model.logits_processor  # type: ignore[attr-defined]
        method = getattr(lm_head, "quant_method", None)
        if not isinstance(method, UnquantizedEmbeddingMethod | UnquantizedLinearMethod):
            return f"lm_head must not be quantized, got {type(method).__name__}"
        if processor.head_dtype not in (None, lm_head.weight.dtype):
            return f"head_dtype must be that of the head's weight, {lm_head.weight.dtype}, got {processor.head_dtype}"
        if lm_head.weight.dim() != 2 or lm_head.weight.shape[0] == 0:
            return f"lm_head must keep its weight [V, D], got shape {tuple(lm_head.weight.shape)}"
        return None


class InContextEagleDraft(InContextDraft):
    """For EAGLE-1, whose fc may have a bias."""

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        fc_bias = FcBias()
        loaded = super().load_weights(fc_bias.taken_from(weights))
        if fc_bias.add_to(self.model):  # type: ignore[attr-defined]
            # The compiled graph has one input more than vLLM's of the same draft, so it needs a place of its own.
            config = self._vllm_config
            config.additional_config = {**config.additional_config, "nanospec_fc_bias": True}
        return loaded


def read_pinned_ids(settings: VllmSettings, draft_directory: Path, vocab_size: int) -> Tensor | None:
    """int64 [P], the ids that 'hybrid:' names, most frequent first; None for 'in-context'.

    Raises ValueError where there is no list or a shorter one, and what `read_id_list` raises.
    """
    kind, _, argument = settings.vocab.partition(":")
    if kind != "hybrid":
        return None
    if not argument.isdecimal():
        return read_id_list(argument, vocab_size)
    path = settings.frequent_ids or draft_directory / FREQUENT_IDS_FILE
    if settings.frequent_ids is None and not path.exists():
        raise ValueError(
            f"vocab {settings.vocab!r} needs a list of frequent ids: {draft_directory} holds no {FREQUENT_IDS_FILE}, "
            "name one by NANOSPEC_FREQUENT_IDS or 'hybrid:FILE'"
        )
    ids, num_ids = read_id_list(path, vocab_size), int(argument)
    if ids.shape[0] < num_ids:
        raise ValueError(f"vocab {settings.vocab!r} needs as many frequent ids, {path} has {ids.shape[0]}")
    return ids[:num_ids]


def _why_no_prompts(vllm_config: Any) -> str | None:
    """Why the target's head cannot be run over a prompt's hidden states; None if it can."""
    if vllm_config.lora_config is not None:
        return "with LoRA, logits are made for the positions that are sampled"
    if vllm_config.cache_config.kv_sharing_fast_prefill:
        return "kv_sharing_fast_prefill leaves their hidden states unfinished"
    return None


def _shard_of(lm_head: Any) -> HeadShard | None:
    """The part of the head in this process; None if that is all of it."""
    if lm_head.tp_size == 1:
        return None
    from vllm.distributed import tensor_model_parallel_all_reduce

    indices = lm_head.shard_indices
    return HeadShard(indices.org_vocab_start_index, indices.org_vocab_end_index, tensor_model_parallel_all_reduce)
