"""The classes of SGLang 0.5.23 that the adapter hooks, in miniature: same names, parameters and order of calls.

Nothing of SGLang itself: a target that knows what follows a token, a draft that is a small matrix. What a CUDA graph
would have captured, tensors by address, is kept from `init_cuda_graphs` on; drafting reads nothing else.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

PLUGINS, CONTEXT = "sglang.srt.plugins.hook_registry", "sglang.srt.runtime_context"
WORKERS = "sglang.srt.speculative.eagle_worker_v2"
VOCAB_SIZE, HIDDEN, TOPK, NUM_STEPS = 60, 16, 3, 4


class HookType(Enum):
    BEFORE = "before"
    AFTER = "after"
    AROUND = "around"
    REPLACE = "replace"


class HookRegistry:
    """Hooks by the dotted path of a method; the kinds wrap as SGLang documents them."""

    _hooks: dict[str, list[tuple[HookType, Any]]] = {}  # noqa: RUF012  # as there: shared by all

    @classmethod
    def register(cls, target: str, hook: Any, hook_type: HookType = HookType.AFTER, *, source: Any = None) -> None:
        cls._hooks.setdefault(target, []).append((hook_type, hook))

    @classmethod
    def apply_hooks(cls) -> None:
        for target, hooks in cls._hooks.items():
            module, class_name, method = target.rsplit(".", 2)
            owner = getattr(importlib.import_module(module), class_name)
            for hook_type, hook in hooks:
                setattr(owner, method, _wrap(getattr(owner, method), hook, hook_type))


def _wrap(original: Any, hook: Any, hook_type: HookType) -> Any:
    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if hook_type is HookType.AROUND:
            return hook(original, *args, **kwargs)
        if hook_type is HookType.BEFORE:
            args, kwargs = hook(*args, **kwargs) or (args, kwargs)
            return original(*args, **kwargs)
        result = original(*args, **kwargs)
        changed = hook(result, *args, **kwargs)
        return result if changed is None else changed

    return wrapper


class Mode(Enum):
    DECODE = "decode"
    IDLE = "idle"

    def is_idle(self) -> bool:
        return self is Mode.IDLE


@dataclass
class DraftInput:
    """What a request's next tree grows from: topk_index [bs, topk] are columns of the draft's head."""

    topk_index: Tensor | None = None
    bonus_tokens: Tensor | None = None


@dataclass
class VerifyInput:
    """draft_token int64 [bs * n]: root, its children, then a chain below the first of them."""

    draft_token: Tensor
    kv_loc_plan: None = None


@dataclass
class Batch:
    input_ids: Tensor | None = None
    spec_info: Any = None
    forward_mode: Mode = Mode.DECODE


class Model(nn.Module):
    """Next-token scores that a token's own embedding gives: a target, or with `noise` its draft."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        embed, head = torch.randn(2, VOCAB_SIZE, HIDDEN, generator=generator, dtype=torch.float64)
        self.embed = embed + noise * torch.randn(embed.shape, generator=generator, dtype=torch.float64)
        self.lm_head = nn.Linear(HIDDEN, VOCAB_SIZE, bias=False, dtype=torch.float64)
        self.lm_head.weight = nn.Parameter(head, requires_grad=False)


class EagleDraftWorker:
    def __init__(self, token_map: list[int] | None, is_eagle3: bool = False) -> None:
        self.token_map, self.topk = token_map, TOPK
        self.speculative_algorithm = SimpleNamespace(is_eagle3=lambda: is_eagle3)
        self.target_worker = SimpleNamespace(model_runner=SimpleNamespace(model=Model(0.0)))
        self.draft_runner = SimpleNamespace(model=Model(0.3))

    def alloc_memory_pool(self) -> None:
        self.init_token_map()
        self.init_lm_head()

    def init_token_map(self) -> None:
        self.hot_token_id = None if self.token_map is None else torch.tensor(self.token_map)

    def init_lm_head(self) -> None:
        _, head = self._resolve_shared_embed_and_head()
        if self.hot_token_id is not None:
            head = head.clone()
            head.data = head.data[self.hot_token_id]
        lm_head = self.draft_runner.model.lm_head
        del lm_head.weight
        lm_head.weight = head  # a plain attribute, as a clone is no parameter

    def _resolve_shared_embed_and_head(self) -> tuple[Tensor, Tensor]:
        model = self.target_worker.model_runner.model
        return model.embed, model.lm_head.weight

    def init_cuda_graphs(self) -> None:
        self.captured = self.hot_token_id, self.draft_runner.model.lm_head.weight

    def columns_after(self, token_ids: Tensor) -> Tensor:
        """Best columns [n, topk] after tokens [n]."""
        return (self.draft_runner.model.embed[token_ids] @ self.captured[1].T).topk(self.topk).indices

    def draft(self, batch: Batch, *, with_topology: bool = False) -> VerifyInput:
        hot_token_id, _ = self.captured
        children = hot_token_id[batch.spec_info.topk_index]
        parts = [batch.spec_info.bonus_tokens[:, None], children]
        token = children[:, 0]
        for _ in range(NUM_STEPS - 1):
            token = hot_token_id[self.columns_after(token)[:, 0]]
            parts.append(token[:, None])
        return VerifyInput(torch.cat(parts, 1).flatten())

    def _draft_extend_for_prefill(
        self,
        batch: Batch,
        target_hidden_states: Tensor,
        next_token_ids: Tensor,
        mm_input_embeds: Tensor | None = None,
        kv_loc_plan: None = None,
    ) -> DraftInput:
        return DraftInput(self.columns_after(next_token_ids), next_token_ids)

    def _draft_extend_for_decode(self, batch: Batch, batch_result: Any, *, kv_loc_plan: None = None) -> None:
        draft_input = batch_result.next_draft_input
        draft_input.topk_index = self.columns_after(draft_input.bonus_tokens)


class EAGLEWorkerV2:
    def __init__(self, token_map: list[int] | None, is_eagle3: bool = False) -> None:
        self._draft_worker = EagleDraftWorker(token_map, is_eagle3)

    @property
    def draft_worker(self) -> EagleDraftWorker:
        return self._draft_worker

    def start(self) -> None:
        self.draft_worker.alloc_memory_pool()
        self.draft_worker.init_cuda_graphs()

    def target_logits(self, token_ids: Tensor) -> Tensor:
        model = self.draft_worker.target_worker.model_runner.model
        return model.embed[token_ids] @ model.lm_head.weight.T

    def prefill(self, prompt: list[int]) -> DraftInput:
        """The prompt of one request; `bonus_tokens` is its first token."""
        input_ids = torch.tensor(prompt)
        next_id = self.target_logits(input_ids[-1:]).argmax(-1)
        batch = Batch(input_ids)
        return self.draft_worker._draft_extend_for_prefill(batch, torch.zeros(1), next_id, None, kv_loc_plan=None)

    def decode(self, draft_inputs: list[DraftInput]) -> list[tuple[list[int], DraftInput, list[int]]]:
        """A step of a batch: per request new tokens, what it goes on from, and its tree."""
        inputs = zip(*[(value.topk_index, value.bonus_tokens) for value in draft_inputs], strict=True)
        batch = Batch(spec_info=DraftInput(*[torch.cat(column) for column in inputs]))
        batch.spec_info = self.draft_worker.draft(batch)
        trees = batch.spec_info.draft_token.view(len(draft_inputs), -1).tolist()
        result = self.verify(batch, pp_proxy_tensors=None, grammar_barrier=None)
        self.draft_worker._draft_extend_for_decode(batch, result, kv_loc_plan=None)
        following = result.next_draft_input
        parts = zip(following.topk_index.split(1), following.bonus_tokens.split(1), strict=True)
        return list(zip(result.accepted, [DraftInput(*part) for part in parts], trees, strict=True))

    def verify(self, batch: Batch, pp_proxy_tensors: None = None, grammar_barrier: None = None) -> Any:
        token_ids = batch.spec_info.draft_token
        logits = self.target_logits(token_ids)
        trees = token_ids.view(-1, TOPK + NUM_STEPS)
        accepted = [
            _walk(tree, best) for tree, best in zip(trees.tolist(), _rows(logits.argmax(-1), trees), strict=True)
        ]
        bonus_tokens = torch.tensor([tokens[-1] for tokens in accepted])
        return SimpleNamespace(
            logits_output=SimpleNamespace(next_token_logits=logits),
            next_draft_input=DraftInput(bonus_tokens=bonus_tokens),
            accepted=accepted,
        )


def _rows(values: Tensor, like: Tensor) -> list[list[int]]:
    return values.view_as(like).tolist()


def _walk(tree: list[int], best: list[int]) -> list[int]:
    """The greedy tokens that one tree yields, the bonus token last."""
    tokens, node = [best[0]], 0
    while True:
        below = range(1, 1 + TOPK) if node == 0 else [TOPK + 1] if node == 1 else [node + 1] if node > TOPK else []
        node = next((child for child in below if child < len(tree) and tree[child] == tokens[-1]), -1)
        if node < 0:
            return tokens
        tokens.append(best[node])


def modules(**parallel: int) -> dict[str, ModuleType]:
    """What the adapter imports, by name; fresh classes, so that the hooks of one test are not those of another."""
    registry = type("HookRegistry", (HookRegistry,), {"_hooks": {}})
    spec, disagg = SimpleNamespace(speculative_adaptive=False), SimpleNamespace(disaggregation_mode="null")
    sizes = SimpleNamespace(**({"tp_size": 1, "pp_size": 1, "dp_size": 1} | parallel))
    contents: dict[str, dict[str, Any]] = {
        PLUGINS: {"HookRegistry": registry, "HookType": HookType},
        CONTEXT: {"get_parallel": lambda: sizes, "get_spec": lambda: spec, "get_disagg": lambda: disagg},
        WORKERS: {
            "EagleDraftWorker": type("EagleDraftWorker", (EagleDraftWorker,), dict(vars(EagleDraftWorker))),
            "EAGLEWorkerV2": type("EAGLEWorkerV2", (EAGLEWorkerV2,), dict(vars(EAGLEWorkerV2))),
        },
    }
    packages = ("sglang", "sglang.srt", "sglang.srt.plugins", "sglang.srt.speculative")
    made = {name: ModuleType(name) for name in (*packages, *contents)}
    for name, members in contents.items():
        vars(made[name]).update(members)
    return made
