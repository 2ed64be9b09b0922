"""transformers' own `generate` over the target's weights: greedy, with an assistant model, with prompt lookup.

Each as its users would run it: scaled dot product attention, a dynamic cache, the dtype and threads of all rows,
inference mode. A streamer that reads the clock tells when tokens were there; it does nothing else.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from bench.suite.decoded import Decode, Decoded
from nanospec.checkpoints.causal_lm import check_same_tokens
from nanospec.checkpoints.target import load_language_model
from nanospec.decode import SpeculativeDecoder
from nanospec.ops.weight_first import WeightFirstLinear

LOOKUP_TOKENS = 10


class PieceClock(BaseStreamer):
    """When every piece of an output arrived, and its number of tokens; the first that comes is the prompt."""

    def __init__(self) -> None:
        self.pieces: list[tuple[float, int]] = []

    def put(self, value: Tensor) -> None:
        self.pieces.append((time.perf_counter(), value.numel()))

    def end(self) -> None:
        pass


def peer(model: PreTrainedModel, **settings: Any) -> Decode:
    """`model.generate` as a row, with whatever settings make it assisted; the model itself stays as it is."""
    own = without_end(model)

    def decode(input_ids: Tensor, max_new_tokens: int) -> Decoded:
        clock, mask = PieceClock(), torch.ones_like(input_ids)
        began = time.perf_counter()
        with torch.inference_mode():
            output = own.generate(
                input_ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                use_cache=True,
                streamer=clock,
                **settings,
            )
            token_ids = output[0, input_ids.shape[1] :].tolist()
        seconds = time.perf_counter() - began
        first, *others = clock.pieces[1:]
        return Decoded(
            token_ids, seconds, first[0] - began, first[1], len(others), sum(num_tokens for _, num_tokens in others)
        )

    return decode


def without_end(model: PreTrainedModel) -> PreTrainedModel:
    """The same modules and weights behind a generation config of transformers' defaults: no id ends an output."""
    twin = copy.copy(model)
    twin.generation_config = GenerationConfig()
    return twin


def as_published(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in layers as transformers makes them, for those that nanospec has changed on loading."""
    weights: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, weights)
    for layer in twin.modules():
        if type(layer) is WeightFirstLinear:
            layer.__class__ = nn.Linear
    return twin


def load_assistant(path: str, decoder: SpeculativeDecoder) -> PreTrainedModel:
    """A small language model in the target's dtype and on its device, its weights as loading left them: torch
    multiplies slices by weights that need no gradient many times slower in bfloat16.

    Raises what `load_language_model` raises, and ValueError for another tokenizer than the target's.
    """
    model, tokenizer = load_language_model(path, "assistant", decoder.target.dtype, decoder.target.device)
    if tokenizer is not None and decoder.tokenizer is not None:
        check_same_tokens(decoder.tokenizer, tokenizer, path)
    return without_end(as_published(model.eval()))
