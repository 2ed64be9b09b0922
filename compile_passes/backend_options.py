"""The options of the backend, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nanospec.draft_vocabulary import HasVocabularyViews, VocabularyViews

INNER_BACKENDS = ("inductor", "aot_eager", "eager")
OWN_OPTIONS = ("vocabulary", "head", "inner", "cudagraphs")


class BackendOptions(NamedTuple):
    """vocabulary and head weight, or None; the backend that compiles the rewritten graph; Inductor's own settings."""

    vocabulary: VocabularyViews | None
    head_weight: Tensor | None
    inner: str
    inductor: dict[str, Any]


def read_options(
    options: Mapping[str, Any] | None, mode: str | None, example_inputs: Sequence[object]
) -> BackendOptions:
    """Raises TypeError or ValueError naming the option, what it must be and what it was."""
    given = dict(options or {})
    vocabulary = _read_vocabulary(given.pop("vocabulary", None))
    head_weight = _read_head(given.pop("head", None), vocabulary)
    inner = given.pop("inner", "inductor")
    if inner not in INNER_BACKENDS:
        raise ValueError(f"inner must be one of {', '.join(INNER_BACKENDS)}, got {inner!r}")
    inductor = _mode_options(mode)
    cudagraphs = given.pop("cudagraphs", None)
    if cudagraphs is not None:
        _check_cudagraphs(cudagraphs, inner, example_inputs)
        inductor["triton.cudagraphs"] = cudagraphs
    inductor.update(_inductor_options(given))
    if inner != "inductor" and inductor:
        raise ValueError(f"inner must be 'inductor' for {', '.join(inductor)}, got {inner!r}")
    return BackendOptions(vocabulary, head_weight, inner, inductor)


def _read_vocabulary(vocabulary: object) -> VocabularyViews | None:
    if vocabulary is None:
        return None
    if not isinstance(vocabulary, HasVocabularyViews):
        raise TypeError(
            "vocabulary must be a DraftVocabulary, a LocalityTracker or a vocabulary of a decoder, "
            f"got {type(vocabulary).__name__}"
        )
    return vocabulary.vocabulary_views()


def _read_head(head: object, vocabulary: VocabularyViews | None) -> Tensor | None:
    if head is None:
        return None
    weight = getattr(head, "weight", None)
    if not isinstance(head, torch.nn.Module) or not isinstance(weight, Tensor) or weight.dim() != 2:
        raise TypeError(f"head must be a module with a weight [V, D], got {type(head).__name__}")
    if vocabulary is None:
        raise ValueError("head names what a vocabulary restricts, got a head and no vocabulary")
    if weight.shape[0] != vocabulary.vocab_size:
        raise ValueError(f"head must have vocab_size {vocabulary.vocab_size} rows, got {weight.shape[0]}")
    return weight


def _check_cudagraphs(cudagraphs: object, inner: str, example_inputs: Sequence[object]) -> None:
    if not isinstance(cudagraphs, bool):
        raise TypeError(f"cudagraphs must be True or False, got {cudagraphs!r}")
    if inner != "inductor":
        raise ValueError(f"cudagraphs needs inner 'inductor', got {inner!r}")
    devices = {value.device.type for value in example_inputs if isinstance(value, Tensor)}
    if cudagraphs and "cuda" not in devices:
        raise ValueError(f"cudagraphs must be False without a CUDA device, got True for inputs on {sorted(devices)}")


def _mode_options(mode: str | None) -> dict[str, Any]:
    if mode is None or mode == "default":
        return {}
    return dict(torch._inductor.list_mode_options(mode))


def _inductor_options(given: Mapping[str, Any]) -> dict[str, Any]:
    known = set(torch._inductor.list_options())
    options = {name.replace("-", "_"): value for name, value in given.items()}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(f"options must be {', '.join(OWN_OPTIONS)} or options of Inductor, got {', '.join(unknown)}")
    return options
