"""`model.generate(..., custom_generate=nanospec.generate_with(draft))`: transformers prepares, our loop decodes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from nanospec.decode import SpeculativeDecoder
from nanospec.decoder_options import TreeArgument
from nanospec.drafters.drafter import Drafter
from nanospec.integrations.transformers.call import GenerateCall, withheld_arguments
from nanospec.integrations.transformers.prompts import padded_rows, unpadded_rows
from nanospec.integrations.transformers.row import GeneratedRow
from nanospec.integrations.transformers.supported import refuse_unsupported_call
from nanospec.stats import GenerationStats
from nanospec.vocab_selector import VocabSelector
from nanospec.weight_places import weight_places


def generate_with(
    draft: str | Path | PreTrainedModel | Drafter,
    vocab: str | VocabSelector = "in-context",
    tree: TreeArgument = None,
    **options: Any,
) -> SpeculativeGenerate:
    """A `custom_generate` for transformers' `generate`, which drafts with `draft`.

        speculative = nanospec.generate_with("path/to/draft", vocab="in-context")
        model.generate(**inputs, custom_generate=speculative, max_new_tokens=200)

    draft, vocab, tree and further options as in `SpeculativeDecoder.from_pretrained`; the target is the model whose
    `generate` is called. Keep the object: it holds one decoder for each model. Raises TypeError for another draft.
    """
    if not isinstance(draft, str | Path | PreTrainedModel | Drafter):
        raise TypeError(f"draft must be a path, a hub id, a model or a Drafter, got {type(draft).__name__}")
    return SpeculativeGenerate(draft, {"vocab": vocab, "tree": tree, **options})


class _Weights(NamedTuple):
    """What a decoder was built over; another one is built when it changes."""

    places: tuple[Hashable, ...]
    device: torch.device
    attention: str | None

    @classmethod
    def of(cls, model: PreTrainedModel) -> _Weights:
        device = model.get_output_embeddings().weight.device
        return cls(weight_places(model), device, model.config.get_text_config()._attn_implementation)


class SpeculativeGenerate:
    """What `generate` calls to decode; for one call at a time, others wait.

    Output as transformers': greedy and, for a single row, sampled tokens are those of plain `generate`, the latter with
    the same state of torch's generator. Rows of a batch are decoded one after the other, so that their draws come in
    another order: the distribution is the same.

    last_stats: the figures of the last call, one for each row.
    """

    def __init__(self, draft: str | Path | PreTrainedModel | Drafter, options: dict[str, Any]) -> None:
        self.draft, self.options = draft, options
        self.last_stats: list[GenerationStats] = []
        self._decoders: dict[int, tuple[_Weights, SpeculativeDecoder]] = {}
        self._lock = threading.RLock()

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
        """What `GenerationMixin.generate` calls; int64 [B, n], or a GenerateDecoderOnlyOutput whose past_key_values is
        None. Raises as `refuse_unsupported_call`, `SpeculativeDecoder.from_pretrained` and `unpadded_rows`, ValueError
        for a max_length beyond the context window."""
        withheld = withheld_arguments(sys._getframe(1))
        call = GenerateCall(
            model, input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs, withheld,
            withheld.get("streamer") if streamer is None else streamer,
        )  # fmt: skip
        refuse_unsupported_call(call)
        with self._lock:
            return self._generate(call)

    def decoder_for(self, model: PreTrainedModel) -> SpeculativeDecoder:
        """The decoder over this model: built on the first call, and anew where its weights lie elsewhere or other
        adapters act on them: the draft, too, is then loaded again."""
        weights = _Weights.of(model)
        kept = self._decoders.get(id(model))
        if kept is None or kept[0] != weights:
            self._decoders.pop(id(model), None)
            kept = weights, SpeculativeDecoder.from_pretrained(model, self.draft, **self.options)
            self._decoders[id(model)] = kept
        return kept[1]

    def _generate(self, call: GenerateCall) -> GenerateDecoderOnlyOutput | Tensor:
        decoder = self.decoder_for(call.model)
        prompts = unpadded_rows(
            call.input_ids, call.model_kwargs.get("attention_mask"), call.model_kwargs.get("position_ids")
        )
        max_new = max(call.max_length - call.input_ids.shape[1], 1)
        longest = max(prompt.shape[1] for prompt in prompts) + max_new
        if longest > decoder.target.context_window:
            raise ValueError(
                f"max_length must leave every row within the model's {decoder.target.context_window} positions, "
                f"got one of {longest} tokens"
            )
        rows = [GeneratedRow(call, row) for row in range(call.batch_size)]
        self.last_stats = [_decode(decoder, row, prompt, max_new) for row, prompt in zip(rows, prompts, strict=True)]
        if call.streamer is not None:
            call.streamer.end()
        return _as_output(call, rows)


def _decode(decoder: SpeculativeDecoder, row: GeneratedRow, prompt: Tensor, max_new: int) -> GenerationStats:
    """Runs the loop until a criterion ends the row."""
    call = row.call
    temperature = 1.0 if call.config.do_sample else 0.0  # of the draft; what is chosen is the row's business
    loop, stats = decoder.speculate(prompt, decoder.tree, max_new, temperature=temperature)
    if not _is_bare_argmax(call, decoder.target.dtype):
        loop.chooser, loop.fixed_steps = row, None
    for token_ids in loop.steps():
        if loop.chooser is None:
            row.take(token_ids)
        if row.is_done:
            break
    stats.new_tokens = row.num_new
    return stats


def _is_bare_argmax(call: GenerateCall, dtype: torch.dtype) -> bool:
    """Whether the best ids of a target pass say it all, so that steps may be captured; float64 is rounded first."""
    has_rule = call.config.do_sample or len(call.processors) or call.wants_scores or call.wants_logits
    return not has_rule and dtype != torch.float64


def _as_output(call: GenerateCall, rows: list[GeneratedRow]) -> GenerateDecoderOnlyOutput | Tensor:
    pad_id = call.config._pad_token_tensor
    sequences = padded_rows([row.sequence for row in rows], None if pad_id is None else int(pad_id))
    if not call.config.return_dict_in_generate:
        return sequences
    return GenerateDecoderOnlyOutput(sequences=sequences, scores=rows[0].scores, logits=rows[0].logits)
