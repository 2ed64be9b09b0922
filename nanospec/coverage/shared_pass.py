"""What all policies share behind a place of a text: one prompt pass of the target, its own continuation, one state.

The tree that a policy drafts decides how many tokens a target pass yields, never which: the path that verification
accepts is the longest one along the target's own continuation. So the continuation is decoded once per context, and no
policy's tree needs a target pass (`tests/coverage/test_measure.py` holds this against the decoder's own steps).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from nanospec.drafters.drafter import Drafter, TakesFirstToken
from nanospec.records import Observation
from nanospec.sampling import SamplingParams, uniforms
from nanospec.target import Target
from nanospec.token_choice import check_finite_logits, choose_next
from nanospec.tree_drafter import cache_rows_needed
from nanospec.tree_shape import TreeShape


class SharedContext(NamedTuple):
    """A text of n tokens as all policies meet it.

    observation   token_ids int64 [1, n], the target's top_ids [1, n, k], next_ids [1, n], the root last
    features      [1, n, F] of the target
    root_id       int64 [1, 1], the target's own token after the text
    continuation  int64 [depth], its own tokens after the root
    """

    observation: Observation
    features: Tensor
    root_id: Tensor
    continuation: Tensor


@torch.inference_mode()
def shared_contexts(
    target: Target,
    token_ids: Tensor,
    cuts: Sequence[int],
    tree: TreeShape,
    num_top: int,
    sampling: SamplingParams,
) -> Iterator[tuple[int, SharedContext]]:
    """(cut, the first `cut` tokens as a context) for every cut of a text int64 [1, n], the longest first.

    The prompt pass is run once, for the longest: what it says of a position does not depend on later ones. The cache of
    the target is left with the cut certain, so that a tree may be judged there. A sampled continuation takes the
    numbers that decoding with the same seed takes, the seed raised by the cut, so that cuts are independent.

    Raises ValueError for cuts outside [1, n] or so near the context window that `depth` + 2 tokens do not fit.
    """
    ordered = sorted(set(cuts), reverse=True)
    last = min(token_ids.shape[1], target.context_window - tree.depth - 2)
    if not ordered or not 1 <= ordered[-1] <= ordered[0] <= last:
        raise ValueError(f"cuts must lie in [1, {last}], got {list(cuts)}")
    text = token_ids[:, : ordered[0]]
    target.reset(text.shape[1] + tree.depth + 1 + cache_rows_needed(tree))
    prefill = target.prefill(text, num_top)
    for cut in ordered:
        own_ids = _decode_behind(target, text[:, :cut], tree.depth + 1, _seeded(sampling, cut))
        next_ids = torch.cat((text[:, 1:cut], own_ids[:, :1]), 1)
        observation = Observation(text[:, :cut], prefill.top_ids[None, :cut], next_ids)
        target.cache.rewind(cut)
        yield cut, SharedContext(observation, prefill.features[:, :cut], own_ids[:, :1], own_ids[0, 1:])


@torch.inference_mode()
def drafter_state(drafter: Drafter, context: SharedContext, tree: TreeShape) -> Tensor:
    """The drafter's state [1, 1, D] after the root, its cache prepared for any number of trees behind it."""
    token_ids, next_ids = context.observation.token_ids, context.observation.next_ids
    drafter.reset(token_ids.shape[1] + 1 + cache_rows_needed(tree))
    if isinstance(drafter, TakesFirstToken):
        drafter.begin(token_ids[:, :1])
    return drafter.extend(next_ids, context.features)


def _decode_behind(target: Target, text: Tensor, num_tokens: int, sampling: SamplingParams) -> Tensor:
    """int64 [1, num_tokens]: the target's own tokens after `text`, whose rows its cache holds."""
    target.cache.rewind(text.shape[1] - 1)
    u = uniforms(sampling, num_tokens, target.device)
    token, own_ids = text[:, -1:], []
    for index in range(num_tokens):
        next_id, largest = choose_next(target.decode(token), sampling, u[index : index + 1], None)
        check_finite_logits(float(largest), text.shape[1] - 1 + index)
        token = next_id[:, None]
        own_ids.append(token)
    return torch.cat(own_ids, 1)


def _seeded(sampling: SamplingParams, cut: int) -> SamplingParams:
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + cut)
