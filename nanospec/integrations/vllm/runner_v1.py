"""The hooks in vLLM's V1 runner: `_sample` sees verified logits and what comes of them, before anything is drafted;
`sample_tokens`, around it, has the hidden states of the whole pass."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nanospec.integrations.vllm.draft_model import InContextDraft
from nanospec.integrations.vllm.prompt_suggestions import ReadRows, best_ids_of_rows, block_size, rows_to_score
from nanospec.ops.blocked_topk import blocked_topk

RUNNER = "vllm.v1.worker.gpu_model_runner"
MARK = "_of_nanospec"  # on what wraps a method of vLLM's


def install() -> bool:
    """Wrap two methods of GPUModelRunner, which the CPU runner inherits; whether they are there to be wrapped."""
    module = sys.modules.get(RUNNER)
    if module is None or hasattr(module.GPUModelRunner._sample, MARK):
        return module is not None
    sample, sample_tokens = module.GPUModelRunner._sample, module.GPUModelRunner.sample_tokens

    @functools.wraps(sample_tokens)
    def sample_tokens_of_pass(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._nanospec_pass = getattr(self, "execute_model_state", None)
        try:
            return sample_tokens(self, *args, **kwargs)
        finally:
            self._nanospec_pass = None

    @functools.wraps(sample)
    def sample_and_follow(self: Any, logits: Tensor | None, spec_decode_metadata: Any) -> Any:
        model = unwrapped(getattr(getattr(self, "drafter", None), "model", None))
        head = model.head_now() if isinstance(model, InContextDraft) else None
        if head is None:
            return sample(self, logits, spec_decode_metadata)
        request_ids = list(self.input_batch.req_ids)
        top_ids = top_by_request(
            logits, spec_decode_metadata, len(request_ids), model.num_top
        )  # sampling writes logits
        prompt_top_ids = prompt_suggestions(self, model, request_ids, spec_decode_metadata)
        output = sample(self, logits, spec_decode_metadata)
        head.rows.enter(
            request_ids, self.requests, lambda request_id: known_ids(self.requests[request_id]), prompt_top_ids
        )
        head.rows.observe(request_ids, output.sampled_token_ids, top_ids)
        head.publish(request_ids)
        # Greedy drafts then ask for the best id only, instead of logits over the vocabulary.
        self.drafter.use_local_argmax_reduction = True
        return output

    setattr(sample_and_follow, MARK, True)
    module.GPUModelRunner._sample, module.GPUModelRunner.sample_tokens = sample_and_follow, sample_tokens_of_pass
    return True


def unwrapped(model: Any) -> Any:
    """The model inside vLLM's wrapper for graphs with breaks."""
    return model.unwrap() if hasattr(model, "unwrap") else model


def known_ids(request: Any) -> list[int]:
    """Prompt and output so far of vLLM's state of a request; a prompt of embeddings has no ids."""
    return [*(request.prompt_token_ids or ()), *request.output_token_ids]


def top_by_request(logits: Tensor | None, spec_decode_metadata: Any, num_requests: int, num_top: int) -> Tensor:
    """The target's best ids at the positions it has verified, int64 [B, m, k], best first, -1 behind a request's end.

    logits [rows, V]: for each request in turn a row per drafted token and one more; without metadata one row each.
    """
    if logits is None or num_top == 0 or num_requests == 0:
        return torch.empty(num_requests, 0, 0, dtype=torch.int64)
    ids = blocked_topk(logits, min(num_top, logits.shape[1]))[1]
    if spec_decode_metadata is None:
        return ids[:num_requests, None]
    return rows_by_request(ids, spec_decode_metadata.cu_num_sampled_tokens, spec_decode_metadata.max_spec_len + 1)


def prompt_suggestions(
    runner: Any, model: InContextDraft, request_ids: Sequence[str], spec_decode_metadata: Any
) -> dict[str, Tensor]:
    """The target's best ids at positions of prompts that this pass has read, int64 [n, k] by request."""
    if model.prompt_positions == 0:
        return {}
    state = getattr(runner, "_nanospec_pass", None)
    if state is None:
        model.leave_prompts_out(f"{type(runner).__name__} keeps their hidden states elsewhere")
        return {}
    num_drafted = [0] * len(request_ids) if spec_decode_metadata is None else spec_decode_metadata.num_draft_tokens
    num_read = state.scheduler_output.num_scheduled_tokens
    if sum(num_read.values()) == len(request_ids) + sum(num_drafted):
        return {}  # no prompt among them, as in most passes
    pass_rows = [
        ReadRows(request_id, num_read[request_id], drafted + 1, request.num_computed_tokens, request.num_tokens)
        for request_id, drafted in zip(request_ids, num_drafted, strict=True)
        for request in (runner.requests[request_id],)
    ]
    rows = rows_to_score(pass_rows, model.prompt_positions)
    return best_ids_of_rows(
        state.hidden_states, rows, runner.model.compute_logits, model.num_prompt_top, block_size(model.max_num_seqs)
    )


def rows_by_request(ids: Tensor, ends: Tensor, most: int) -> Tensor:
    """ids [rows, k], request by request, of which the i-th ends before row ends[i] -> [B, most, k], -1 where none is.

    Example: ids [[7], [8], [9]], ends [2, 3] and most 2 give [[[7], [8]], [[9], [-1]]].
    """
    ends = ends.long()
    starts = torch.cat((torch.zeros_like(ends[:1]), ends[:-1]))
    row = starts[:, None] + torch.arange(most, device=ends.device)
    return ids[row.clamp(max=ids.shape[0] - 1)].masked_fill((row >= ends[:, None])[..., None], -1)
