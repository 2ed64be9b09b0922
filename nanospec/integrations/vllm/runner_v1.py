"""The hook in vLLM's V1 runner: `_sample` sees verified logits and what comes of them, before anything is drafted."""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch import Tensor

from nanospec.integrations.vllm.draft_model import InContextDraft
from nanospec.ops.blocked_topk import blocked_topk

RUNNER = "vllm.v1.worker.gpu_model_runner"
MARK = "_of_nanospec"  # on what wraps a method of vLLM's


def install() -> bool:
    """Wrap `GPUModelRunner._sample`, which the CPU runner inherits; whether it is there to be wrapped."""
    module = sys.modules.get(RUNNER)
    if module is None or hasattr(module.GPUModelRunner._sample, MARK):
        return module is not None
    sample = module.GPUModelRunner._sample

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
        output = sample(self, logits, spec_decode_metadata)
        head.rows.enter(request_ids, self.requests, lambda request_id: known_ids(self.requests[request_id]))
        head.rows.observe(request_ids, output.sampled_token_ids, top_ids)
        head.publish(request_ids)
        # Greedy drafts then ask for the best id only, instead of logits over the vocabulary.
        self.drafter.use_local_argmax_reduction = True
        return output

    setattr(sample_and_follow, MARK, True)
    module.GPUModelRunner._sample = sample_and_follow
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


def rows_by_request(ids: Tensor, ends: Tensor, most: int) -> Tensor:
    """ids [rows, k], request by request, of which the i-th ends before row ends[i] -> [B, most, k], -1 where none is.

    Example: ids [[7], [8], [9]], ends [2, 3] and most 2 give [[[7], [8]], [[9], [-1]]].
    """
    ends = ends.long()
    starts = torch.cat((torch.zeros_like(ends[:1]), ends[:-1]))
    row = starts[:, None] + torch.arange(most, device=ends.device)
    return ids[row.clamp(max=ids.shape[0] - 1)].masked_fill((row >= ends[:, None])[..., None], -1)
