"""The subclasses that vLLM's registry imports by name: `InContextEagleLlamaForCausalLM` and so on, one for each of
`ARCHITECTURES`, made when asked for, so that only the module of the one draft in use is imported."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from nanospec.integrations.vllm.architectures import ARCHITECTURES
from nanospec.integrations.vllm.draft_model import InContextDraft, InContextEagleDraft

_BY_OWN_NAME = {architecture.own_name: architecture for architecture in ARCHITECTURES.values()}
_WITH_FC = ("EagleLlamaForCausalLM",)


def __getattr__(name: str) -> Any:
    architecture = _BY_OWN_NAME.get(name)
    if architecture is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    base = getattr(import_module(f"vllm.model_executor.models.{architecture.module}"), architecture.class_name)
    mixin = InContextEagleDraft if architecture.class_name in _WITH_FC else InContextDraft
    model = type(name, (mixin, base), {"__module__": __name__, "__doc__": f"{architecture.class_name}, in context."})
    globals()[name] = model
    return model
