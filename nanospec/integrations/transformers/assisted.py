"""`model.generate(..., custom_generate=nanospec.assist_with(small_model))`: transformers' assisted generation, whose
assistant scores a draft vocabulary only."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from nanospec.integrations.transformers.call import GenerateCall, withheld_arguments
from nanospec.integrations.transformers.candidate_generator import DEFAULT_NUM_CANDIDATES, GatheredCandidateGenerator
from nanospec.integrations.transformers.supported import refuse_unsupported_assistance
from nanospec.vocab_selector import VocabSelector


def assist_with(
    assistant: PreTrainedModel,
    vocab: str | VocabSelector = "in-context",
    num_candidates: int = DEFAULT_NUM_CANDIDATES,
    **options: Any,
) -> AssistedGenerate:
    """A `custom_generate` for transformers' `generate`, which is its assisted generation with our candidates.

        model.generate(**inputs, custom_generate=nanospec.assist_with(small_model), max_new_tokens=200)

    The target may be any model that assisted generation takes; further options as of `GatheredCandidateGenerator`.
    Raises TypeError for an assistant that is no model.
    """
    if not isinstance(assistant, PreTrainedModel):
        raise TypeError(f"assistant must be a PreTrainedModel, got {type(assistant).__name__}")
    return AssistedGenerate(assistant, {"vocab": vocab, "num_candidates": num_candidates, **options})


class AssistedGenerate:
    """What `generate` calls to decode. Every call has candidates, caches and a vocabulary of its own."""

    def __init__(self, assistant: PreTrainedModel, options: dict[str, Any]) -> None:
        self.assistant, self.options = assistant, options

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        streamer: BaseStreamer | None = None,
        **model_kwargs: Any,
    ) -> GenerateDecoderOnlyOutput | Tensor:
        """What `GenerationMixin.generate` calls; returns what its assisted generation does. Raises as
        `refuse_unsupported_assistance` and `GatheredCandidateGenerator`."""
        withheld = withheld_arguments(sys._getframe(1))
        streamer = withheld.get("streamer") if streamer is None else streamer
        call = GenerateCall(
            model, input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs, withheld, streamer
        )
        refuse_unsupported_assistance(call)
        eos = generation_config._eos_token_tensor
        candidates = GatheredCandidateGenerator(
            self.assistant,
            model.get_output_embeddings().weight.shape[0],
            max_length=call.max_length,
            eos_ids=() if eos is None else eos.tolist(),
            **self.options,
        )
        return type(model)._assisted_decoding(
            _WithCandidates(model, candidates),
            input_ids,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            generation_config=generation_config,
            streamer=streamer,
            **model_kwargs,
        )


class _WithCandidates:
    """The model for transformers' loop, with another answer to one question; the model itself stays as it is."""

    def __init__(self, model: PreTrainedModel, candidates: GatheredCandidateGenerator) -> None:
        self._model, self._candidates = model, candidates

    def __call__(self, **inputs: Any) -> Any:
        return self._model(**inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def _get_candidate_generator(self, **settings: Any) -> GatheredCandidateGenerator:
        return self._candidates
