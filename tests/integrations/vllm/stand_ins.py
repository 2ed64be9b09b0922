"""Stand-ins for what the plugin meets in vLLM: a draft model, a V1 and a V2 runner, as bare as the hooks allow."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from nanospec.integrations.vllm.active_head import ActiveHead
from nanospec.integrations.vllm.draft_model import InContextDraft, InContextEagleDraft
from nanospec.integrations.vllm.request_rows import RequestRows

VOCAB_SIZE, HIDDEN, MAX_REQUESTS = 40, 6, 4


def vllm_config(directory: str = "nowhere", **nanospec: Any) -> SimpleNamespace:
    """As much of a VllmConfig as the plugin reads."""
    return SimpleNamespace(
        additional_config={"nanospec": nanospec} if nanospec else {},
        speculative_config=SimpleNamespace(draft_model_config=SimpleNamespace(model=directory)),
        scheduler_config=SimpleNamespace(max_num_seqs=MAX_REQUESTS),
        lora_config=None,
        cache_config=SimpleNamespace(kv_sharing_fast_prefill=False),
    )


class PlainDraft(nn.Module):
    """A draft model as vLLM's: `lm_head` [V, D], a processor that scales; biases in attention whether filled or not."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=VOCAB_SIZE)
        self.lm_head = nn.Linear(HIDDEN, VOCAB_SIZE, bias=False, dtype=torch.float64)
        self.lm_head.tp_size = 1
        self.logits_processor = SimpleNamespace(soft_cap=None, scale=0.5)
        self.model = nn.Module()
        self.model.fc = nn.Linear(2 * HIDDEN, HIDDEN, bias=False, dtype=torch.float64)
        self.model.o_proj = nn.Linear(HIDDEN, HIDDEN, dtype=torch.float64)
        nn.init.constant_(self.model.o_proj.bias, torch.nan)  # what uninitialised memory may hold
        self.draft_id_to_target_id: nn.Parameter | None = None

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        logits = self.lm_head(hidden_states) * self.logits_processor.scale
        if self.draft_id_to_target_id is None:
            return logits
        ids = torch.arange(logits.shape[1]) + self.draft_id_to_target_id
        return logits.new_full((logits.shape[0], VOCAB_SIZE), -torch.inf).index_copy_(1, ids, logits)

    def load_weights(self, weights: Any) -> None:
        own = dict(self.named_parameters())
        with torch.no_grad():
            for name, weight in weights:
                own[name].copy_(weight)


class InContextPlainDraft(InContextDraft, PlainDraft):
    _why_not = staticmethod(lambda: None)  # vLLM's own classes are not here to be asked


class InContextPlainEagle(InContextEagleDraft, PlainDraft):
    _why_not = staticmethod(lambda: None)


def loaded_draft(directory: str = "nowhere", **nanospec: Any) -> InContextPlainDraft:
    torch.manual_seed(3)
    draft = InContextPlainDraft(vllm_config=vllm_config(directory, **nanospec))
    draft.load_weights([])
    return draft


def active_ids(head: ActiveHead, request_id: str) -> set[int]:
    """Ids of the target that a request drafts from now."""
    rows: RequestRows = head.rows
    row = rows.row_index([request_id])
    return set(rows.tracker.draft_ids[row][0, : int(rows.tracker.count[row])].tolist())
