"""One generation watched from outside: which ids the in-context vocabulary held, and which of them the text took."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nanospec.decode import SpeculativeDecoder


@torch.inference_mode()
def watch(decoder: SpeculativeDecoder, input_ids: Tensor, max_new_tokens: int) -> dict[str, Any]:
    """vocab_size and steps: of every target pass after the prompt's

        num_active   ids in the vocabulary that the step drafted from
        num_entered  ids that have ever been in it, the step's own included
        tokens       [place, is_hit] of every token that the step yielded: place is the number of its id in order of
                     entry, None for one that has not entered before; is_hit: the vocabulary held it

    input_ids int64 [1, P]. Nothing is timed: every step waits for the device.
    """
    loop, _ = decoder.speculate(input_ids, decoder.tree, max_new_tokens)
    entered: dict[int, int] = {}
    steps: list[dict[str, Any]] = []
    active: set[int] = set()
    for emitted in loop.steps():
        if entered:  # not the token of the prompt pass, for which nobody drafted
            tokens = [[entered.get(token_id), token_id in active] for token_id in emitted]
            steps.append({"num_active": len(active), "tokens": tokens})
        ids = _active_ids(decoder)
        for token_id in ids:
            entered.setdefault(token_id, len(entered))
        active = set(ids)
        if steps:
            steps[-1]["num_entered"] = len(entered)
    return {"vocab_size": decoder.target.vocab_size, "steps": steps}


def _active_ids(decoder: SpeculativeDecoder) -> list[int]:
    vocab = decoder.vocab.select()
    return vocab.draft_ids[0, : int(vocab.count[0])].tolist()
