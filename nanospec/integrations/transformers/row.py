"""One row of a `generate` call: what transformers does with the logits after every token, wherever they come from."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from nanospec.integrations.transformers.call import GenerateCall
from nanospec.token_choice import check_finite_logits


class GeneratedRow:
    """The growing sequence of one row; a `TokenChooser`.

    A token comes from float32 logits through the call's processors, by argmax, or by `torch.multinomial` with torch's
    generator; then the criteria see the sequence and the streamer the token. Each happens once per token of the
    output and in transformers' order: processors that keep state see what they would see there, and the generator
    yields the same numbers.

    sequence   int64 [1, n]: padding, prompt and output
    scores, logits  float32 [1, V] per token, processed and as they were, where the call asks for them, else None
    """

    def __init__(self, call: GenerateCall, row: int) -> None:
        self.call = call
        self.processors = LogitsProcessorList(_for_row(processor, row) for processor in call.processors)
        self.sequence = call.input_ids[row : row + 1]
        self.is_done = False
        self.scores: tuple[Tensor, ...] | None = () if call.wants_scores else None
        self.logits: tuple[Tensor, ...] | None = () if call.wants_logits else None

    @property
    def num_new(self) -> int:
        return self.sequence.shape[1] - self.call.input_ids.shape[1]

    def choose(self, logits: Tensor) -> int:
        """The next token, given the target's logits [1, V] after the last one; ends the row where a criterion says so.

        Raises NonFiniteLogitsError for logits that are not finite.
        """
        check_finite_logits(float(logits.amax()), self.sequence.shape[1] - 1)
        with torch.inference_mode(False), torch.no_grad():  # others may keep what they are shown
            raw = logits.to(self.sequence.device, torch.float32, copy=True)
            scores = self.processors(self.sequence, raw)
            if self.scores is not None:
                self.scores += (scores,)
            if self.logits is not None:
                self.logits += (raw,)
            if self.call.config.do_sample:
                token_id = torch.multinomial(scores.softmax(-1), num_samples=1).squeeze(1)
            else:
                token_id = scores.argmax(-1)
            self._append(token_id)
            return int(token_id)

    def take(self, token_ids: list[int]) -> None:
        """Tokens that were chosen elsewhere, up to the one that ends the row."""
        for token_id in token_ids:
            if self.is_done:
                return
            self._append(torch.tensor([token_id], device=self.sequence.device))

    def _append(self, token_id: Tensor) -> None:
        self.sequence = torch.cat((self.sequence, token_id[:, None]), -1)
        self.is_done = bool(self.call.criteria(self.sequence, self.scores).all())
        if self.call.streamer is not None:
            self.call.streamer.put(token_id.cpu())


def _for_row(processor: LogitsProcessor, row: int) -> LogitsProcessor:
    """The repetition penalty of a padded batch knows the padding of every row; any other processor as it is."""
    padding = getattr(processor, "prompt_ignore_length", None)
    if not isinstance(padding, Tensor):
        return processor
    processor = copy(processor)
    processor.prompt_ignore_length = padding[row : row + 1]
    return processor
