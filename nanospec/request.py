"""What a caller asks for, checked once before any work begins."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from nanospec.keyword_names import check_names
from nanospec.sampling import SamplingParams

# What `SpeculativeDecoder.generate` and its like take beside `input_ids`.
SETTINGS = ("max_new_tokens", "stop_strings", "ignore_eos", *(entry.name for entry in fields(SamplingParams)))


@dataclass(frozen=True)
class Request:
    """One generation. input_ids int64 [1, P]; eos_ids and stop_strings end it early, max_new_tokens always does."""

    input_ids: Tensor
    max_new_tokens: int = 256
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop_strings: tuple[str, ...] = ()
    eos_ids: frozenset[int] = frozenset()

    def parts(self) -> tuple[object, ...]:
        """All of it as plain values, on the host: equal for equal requests."""
        ids, eos_ids = self.input_ids.tolist(), sorted(self.eos_ids)
        return ids, self.max_new_tokens, self.sampling, self.stop_strings, eos_ids

    def check(self, vocab_size: int, context_window: int) -> None:
        """Raises TypeError or ValueError naming the argument, what it must be and what it was."""
        if not isinstance(self.max_new_tokens, int) or isinstance(self.max_new_tokens, bool):
            raise TypeError(f"max_new_tokens must be an int, got {self.max_new_tokens!r}")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        length = self.input_ids.shape[1]
        if length == 0:
            raise ValueError("input_ids must hold at least one token, got an empty prompt")
        smallest, largest = int(self.input_ids.min()), int(self.input_ids.max())
        if smallest < 0 or largest >= vocab_size:
            raise ValueError(f"input_ids must lie in [0, {vocab_size}), got {smallest if smallest < 0 else largest}")
        if length >= context_window:
            raise ValueError(
                f"input_ids must be shorter than the context window of {context_window}, got {length} tokens"
            )


def as_sampling(settings: Mapping[str, Any]) -> SamplingParams:
    """What is left of the settings once a request has taken its own.

    Raises TypeError for a name that is none of `SETTINGS`, and as `SamplingParams`.
    """
    check_names("settings", settings, SETTINGS)
    return SamplingParams(**settings)


def as_input_ids(input_ids: Tensor | Sequence[int], device: torch.device) -> Tensor:
    """int64 [1, P] of a tensor [P] or [1, P] or of a list of ints.

    Raises NotImplementedError for a batch, TypeError for what holds no integers, ValueError for other shapes and for
    integers beyond 64 bits.
    """
    ids = input_ids if isinstance(input_ids, Tensor) else _as_tensor(input_ids)
    if ids.numel() == 0:
        ids = ids.long()
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"input_ids must be integers, got {ids.dtype}")
    if ids.ndim == 1:
        ids = ids[None]
    if ids.ndim != 2:
        raise ValueError(f"input_ids must be [P] or [1, P], got shape {tuple(ids.shape)}")
    if ids.shape[0] != 1:
        raise NotImplementedError(f"input_ids must hold one sequence, got a batch of {ids.shape[0]}")
    return ids.to(device=device, dtype=torch.int64)


def _as_tensor(input_ids: Sequence[int]) -> Tensor:
    try:
        return torch.tensor(input_ids)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # torch names neither argument nor value
        is_of_integers = isinstance(input_ids, list | tuple) and all(_is_of_integers(entry) for entry in input_ids)
        hint = ": decoder.encode(text) makes them of a text" if isinstance(input_ids, str) else ""
        raise (ValueError if is_of_integers else TypeError)(
            f"input_ids must be integers of 64 bits, [P] or [1, P], got {reprlib.repr(input_ids)}{hint}"
        ) from error


def _is_of_integers(entry: object) -> bool:
    return all(isinstance(number, int) for number in (entry if isinstance(entry, list | tuple) else (entry,)))
