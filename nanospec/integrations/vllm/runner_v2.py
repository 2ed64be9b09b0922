"""The hooks in vLLM's V2 runner. Written after vLLM's code and tested on stand-ins only: that runner needs a GPU.

It captures drafting, head included, as CUDA graphs. `ActiveHead` keeps its addresses, so a replay reads what `publish`
wrote. Where a request has no id that the draft can say, that step runs eagerly, over the full head.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanospec.integrations.vllm.active_head import ActiveHead
from nanospec.integrations.vllm.draft_model import InContextDraft
from nanospec.integrations.vllm.prompt_suggestions import ReadRows, best_ids_of_rows, block_size, rows_to_score
from nanospec.integrations.vllm.runner_v1 import MARK, rows_by_request, unwrapped
from nanospec.ops.blocked_topk import blocked_topk

RUNNER = "vllm.v1.worker.gpu.model_runner"
SPECULATOR = "vllm.v1.worker.gpu.spec_decode.target_dependent_ar.speculator"
SAMPLERS = (
    ("vllm.v1.worker.gpu.sample.sampler", "Sampler"),
    ("vllm.v1.worker.gpu.spec_decode.rejection_sampler", "RejectionSampler"),
)


def install() -> bool:
    """Wrap runner, samplers and speculator; whether they are there to be wrapped."""
    runner, speculator = sys.modules.get(RUNNER), sys.modules.get(SPECULATOR)
    if runner is None or speculator is None:
        return False
    if hasattr(runner.GPUModelRunner.sample, MARK):
        return True
    _wrap(runner.GPUModelRunner, "add_requests", _add_requests)
    _wrap(runner.GPUModelRunner, "sample", _sample)
    for module, name in SAMPLERS:
        if module in sys.modules:
            _wrap(getattr(sys.modules[module], name), "__call__", _keep_top)
    _wrap(speculator.TargetDependentARSpeculator, "capture", _capture)
    _wrap(speculator.TargetDependentARSpeculator, "propose", _propose)
    return True


def _wrap(owner: Any, name: str, around: Any) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(original, self, *args, **kwargs)

    setattr(wrapped, MARK, True)
    setattr(owner, name, wrapped)


def _draft_of(speculator: Any) -> tuple[InContextDraft, ActiveHead] | None:
    model = unwrapped(getattr(speculator, "model", None))
    head = model.head_now() if isinstance(model, InContextDraft) else None
    return None if head is None else (model, head)


def _add_requests(original: Any, self: Any, scheduler_output: Any) -> None:
    """Keep what is known of new requests, resumed ones among them: the runner itself keeps it on the device."""
    original(self, scheduler_output)
    known = self.__dict__.setdefault("_nanospec_known", {})
    for request in scheduler_output.scheduled_new_reqs:
        known[request.req_id] = list(request.prefill_token_ids)
    for request_id in [request_id for request_id in known if request_id not in self.req_states.req_id_to_index]:
        del known[request_id]


def _sample(original: Any, self: Any, hidden_states: Tensor, input_batch: Any, *args: Any) -> Any:
    draft = _draft_of(getattr(self, "speculator", None))
    if draft is None:
        return original(self, hidden_states, input_batch, *args)
    model, head = draft
    input_batch.nanospec_num_top = model.num_top
    prompt_top_ids = _prompt_suggestions(self, model, hidden_states, input_batch)
    outcome = original(self, hidden_states, input_batch, *args)
    output, num_sampled = outcome[0], outcome[1]
    request_ids = list(input_batch.req_ids)[: input_batch.num_reqs]
    sampled = output.sampled_token_ids[: len(request_ids)]
    is_token = torch.arange(sampled.shape[1], device=sampled.device) < num_sampled[: len(request_ids), None]
    top_ids = getattr(input_batch, "nanospec_top", None)
    if top_ids is None:
        top_ids = sampled.new_empty(len(request_ids), 0, 0)
    known = self.__dict__.get("_nanospec_known", {})
    head.rows.enter(request_ids, known, known.__getitem__, prompt_top_ids)
    head.rows.observe(request_ids, sampled.masked_fill(~is_token, -1), top_ids)
    head.publish(request_ids)
    return outcome


def _prompt_suggestions(
    runner: Any, model: InContextDraft, hidden_states: Tensor, input_batch: Any
) -> dict[str, Tensor]:
    """As in V1. Rows of requests that generate are the device's secret where drafts are shared out there: not then."""
    if model.prompt_positions == 0 or not input_batch.has_prefill:
        return {}
    if getattr(runner, "adaptive_verification", None) is not None:
        model.leave_prompts_out("adaptive verification lays out a batch on the device")
        return {}
    num_scored = np.diff(input_batch.cu_num_logits_np[: input_batch.num_reqs + 1])
    pass_rows = map(
        ReadRows,
        input_batch.req_ids,
        input_batch.num_scheduled_tokens.tolist(),
        num_scored.tolist(),
        input_batch.num_computed_prefill_tokens_np.tolist(),
        input_batch.prefill_len_np.tolist(),
    )
    rows = rows_to_score(pass_rows, model.prompt_positions)
    return best_ids_of_rows(
        hidden_states, rows, runner.model.compute_logits, model.num_prompt_top, block_size(model.max_num_seqs)
    )


def _keep_top(original: Any, self: Any, logits: Tensor, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
    """Lay the target's best ids beside the batch, before sampling writes into its logits."""
    num_top = min(getattr(input_batch, "nanospec_num_top", 0), logits.shape[1])
    if num_top and logits.shape[0]:
        most = 1 + int(input_batch.num_draft_tokens_per_req.max()) if input_batch.num_draft_tokens else 1
        ends = input_batch.cu_num_logits[1 : input_batch.num_reqs + 1]
        input_batch.nanospec_top = rows_by_request(blocked_topk(logits, num_top)[1], ends, most)
    return original(self, logits, input_batch, *args, **kwargs)


def _capture(original: Any, self: Any) -> None:
    """Graphs are captured over the buffers, whatever they hold now."""
    draft = _draft_of(self)
    if draft is not None:
        draft[1].read_buffers()
        self.use_local_argmax_reduction = self.acceptance_estimator is None
    original(self)


def _propose(original: Any, self: Any, *args: Any, **kwargs: Any) -> Tensor:
    draft = _draft_of(self)
    if draft is None:
        return original(self, *args, **kwargs)
    head = draft[1]
    self.use_local_argmax_reduction = self.acceptance_estimator is None
    if kwargs.get("dummy_run") and not kwargs.get("is_profile"):
        head.read_buffers()
    elif kwargs.get("is_profile"):
        head.is_full = True  # what memory can be needed at most
    elif head.is_full:
        kwargs["is_profile"] = True  # which means: replay no graph
    return original(self, *args, **kwargs)
