"""Hooks that let SGLang's EAGLE draft from `HotIds`.

A decoding step of SGLang is draft, verify, draft-extend. The extend proposes the first level of the next tree as
columns of the head at that time, and until it is drafted other requests may come in and change what the columns mean.
Hence what is proposed leaves the extend as token ids, and becomes columns again when its tree is drafted:

    init_lm_head               the head and the ids of the token map go into buffers that stay
    _draft_extend_for_prefill  before: the prompt is seen; after: columns -> ids
    draft                      before: ids -> columns, in whatever columns they are by then
    verify                     after: the tree and the target's best ids at its nodes are seen
    _draft_extend_for_decode   after: columns -> ids
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from nanospec.integrations.sglang.hot_ids import HotIds
from nanospec.ops.blocked_topk import blocked_topk
from nanospec.records import Observation
from nanospec.vocab.sources import IN_CONTEXT_SOURCES, gather_candidates

SWITCH, PINNED, TOP = "NANOSPEC_SGLANG", "NANOSPEC_SGLANG_PINNED", "NANOSPEC_SGLANG_TOP"
DEFAULT_TOP = 16
MODULE = "sglang.srt.speculative.eagle_worker_v2"
log = logging.getLogger(__name__)
# Of each draft worker.
_hot_ids: WeakKeyDictionary[Any, HotIds] = WeakKeyDictionary()
_num_top: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def register() -> None:
    """Entry point for SGLang. Does nothing unless the environment has NANOSPEC_SGLANG; raises nothing, because SGLang
    would only log it: settings are checked in `take_over`."""
    if not os.environ.get(SWITCH):
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for target, hook, kind in HOOKS:
        HookRegistry.register(f"{MODULE}.{target}", hook, HookType[kind])


def take_over(result: None, worker: Any) -> None:
    """After `EagleDraftWorker.init_lm_head`: ids and rows move into buffers that stay, before any graph is captured.

    Raises NotImplementedError for what this adapter does not know, ValueError for a token map or settings that do not
    fit, RuntimeError if SGLang could not apply all hooks.
    """
    if os.environ.get(SWITCH) != "in-context":
        raise ValueError(f"{SWITCH} must be 'in-context' or not set, got {os.environ.get(SWITCH)!r}")
    num_top = _number(TOP, DEFAULT_TOP, 1)
    _refuse_unsupported(worker)
    _check_hooks()
    _, full_head = worker._resolve_shared_embed_and_head()
    lm_head = worker.draft_runner.model.lm_head
    first_ids = worker.hot_token_id
    expected = (first_ids.shape[0], full_head.shape[1])
    if tuple(lm_head.weight.shape) != expected:
        raise NotImplementedError(f"the draft's lm_head must be {expected}, got {tuple(lm_head.weight.shape)}")
    hot_ids = HotIds(full_head, first_ids, _number(PINNED, first_ids.shape[0] // 2, 0))
    worker.hot_token_id = hot_ids.hot_token_id
    lm_head.weight = nn.Parameter(hot_ids.rows, requires_grad=False)
    _hot_ids[worker] = hot_ids
    _num_top[worker] = num_top
    log.info("the draft scores %d ids that follow the context, %d of them fixed", hot_ids.num_ids, hot_ids.num_pinned)


def extend_for_prefill(
    original: Callable[..., Any], worker: Any, batch: Any, target_hidden_states: Tensor, next_token_ids: Tensor,
    *args: Any, **kwargs: Any,
) -> Any:  # fmt: skip
    """Around `EagleDraftWorker._draft_extend_for_prefill`, which returns the next draft input."""
    hot_ids = _hot_ids.get(worker)
    if hot_ids is not None and not batch.forward_mode.is_idle():
        hot_ids.observe(torch.cat((batch.input_ids.flatten().long(), next_token_ids.flatten().long())))
    draft_input = original(worker, batch, target_hidden_states, next_token_ids, *args, **kwargs)
    if hot_ids is not None:
        draft_input.topk_index = hot_ids.ids_of(draft_input.topk_index)
    return draft_input


def extended_for_decode(result: None, worker: Any, batch: Any, batch_result: Any, **kwargs: Any) -> None:
    """After `EagleDraftWorker._draft_extend_for_decode`, which completes the next draft input in place."""
    hot_ids = _hot_ids.get(worker)
    if hot_ids is not None:
        draft_input = batch_result.next_draft_input
        draft_input.topk_index = hot_ids.ids_of(draft_input.topk_index)


def before_draft(worker: Any, batch: Any, **kwargs: Any) -> None:
    """Before `EagleDraftWorker.draft`, which reads `batch.spec_info`."""
    hot_ids = _hot_ids.get(worker)
    if hot_ids is not None and batch.spec_info.topk_index.numel():
        draft_input = copy.copy(batch.spec_info)  # what others hold keeps its ids
        draft_input.topk_index = hot_ids.columns_of(batch.spec_info.topk_index)
        batch.spec_info = draft_input


def verify(original: Callable[..., Any], worker: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    """Around `EAGLEWorkerV2.verify`, in which `batch.spec_info` is the tree."""
    hot_ids, tree_ids = _hot_ids.get(worker.draft_worker), batch.spec_info.draft_token
    result = original(worker, batch, *args, **kwargs)
    if hot_ids is not None and not batch.forward_mode.is_idle():
        _, top_ids = blocked_topk(result.logits_output.next_token_logits, _num_top[worker.draft_worker])
        token_ids = tree_ids.reshape(1, -1).long()
        seen = Observation(token_ids, top_ids[None], torch.full_like(token_ids, -1))
        bonus_ids = result.next_draft_input.bonus_tokens.reshape(1, -1).long()
        hot_ids.observe(torch.cat((gather_candidates(IN_CONTEXT_SOURCES, seen), bonus_ids), 1))
    return result


# Method of `MODULE`, hook, kind of hook; all of them or none.
HOOKS: tuple[tuple[str, Callable[..., Any], str], ...] = (
    ("EagleDraftWorker.init_lm_head", take_over, "AFTER"),
    ("EagleDraftWorker._draft_extend_for_prefill", extend_for_prefill, "AROUND"),
    ("EagleDraftWorker._draft_extend_for_decode", extended_for_decode, "AFTER"),
    ("EagleDraftWorker.draft", before_draft, "BEFORE"),
    ("EAGLEWorkerV2.verify", verify, "AROUND"),
)


def _refuse_unsupported(worker: Any) -> None:
    from sglang.srt.runtime_context import get_disagg, get_parallel, get_spec

    if worker.speculative_algorithm.is_eagle3():
        raise NotImplementedError("--speculative-algorithm must be EAGLE with nanospec, got EAGLE3")
    if worker.hot_token_id is None:
        raise ValueError("--speculative-token-map must name a list of ids with nanospec, got none")
    for name in ("tp_size", "pp_size", "dp_size"):
        size = getattr(get_parallel(), name)
        if size != 1:
            raise NotImplementedError(f"{name} must be 1 with nanospec, got {size}")
    if get_spec().speculative_adaptive:
        raise NotImplementedError("--speculative-adaptive must be off with nanospec")
    mode = get_disagg().disaggregation_mode
    if mode != "null":
        raise NotImplementedError(f"--disaggregation-mode must be null with nanospec, got {mode!r}")


def _check_hooks() -> None:
    """SGLang logs a hook that it cannot apply, and goes on: some of them without the others would draft nonsense."""
    from importlib import import_module

    module = import_module(MODULE)
    for target, _, _ in HOOKS:
        class_name, _, method = target.partition(".")
        if not hasattr(getattr(getattr(module, class_name), method), "__wrapped__"):
            raise RuntimeError(
                f"{MODULE}.{target} must carry nanospec's hook, which SGLang could not apply: see its log"
            )


def _number(name: str, default: int, least: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {text!r}")
    return int(text)
