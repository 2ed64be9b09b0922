"""What transformers' `generate` hands a `custom_generate` callable, and what it keeps to itself."""

from __future__ import annotations

from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

GENERATE = "generate"
WITHHELD = ("assistant_model", "past_key_values", "streamer", "synced_gpus")


@dataclass(frozen=True)
class GenerateCall:
    """One call of `model.generate`, its inputs prepared and its processors and criteria built.

    input_ids int64 [B, P], left-padded where attention_mask [B, P] in model_kwargs says so
    withheld  those of WITHHELD that `generate` was given, by name
    """

    model: PreTrainedModel
    input_ids: Tensor
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    config: GenerationConfig
    model_kwargs: dict[str, Any]
    withheld: dict[str, Any]
    streamer: BaseStreamer | None = None

    @property
    def batch_size(self) -> int:
        return self.input_ids.shape[0]

    @property
    def wants_scores(self) -> bool:
        return bool(self.config.return_dict_in_generate and self.config.output_scores)

    @property
    def wants_logits(self) -> bool:
        return bool(self.config.return_dict_in_generate and self.config.output_logits)

    @property
    def max_length(self) -> int:
        """Tokens of a row, prompt and padding included; a criterion of the caller's goes before the setting."""
        asked = self.criteria.max_length
        return self.config.max_length if asked is None else asked


def withheld_arguments(frame: FrameType) -> dict[str, Any]:
    """What the caller gave `generate` and a callable never sees, if that is whose frame this is.

    `generate` drops streamer and assistant_model of a call with a callable without a word: a thread that reads the
    streamer would wait for ever. So they are read where they stand.
    """
    if frame.f_code.co_name != GENERATE:
        return {}
    arguments = frame.f_locals
    given = {**arguments.get("kwargs", {}), **arguments}
    return {name: given[name] for name in WITHHELD if given.get(name) is not None}
