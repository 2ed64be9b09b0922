"""What followed each token lately, and how surely: one update of the table as fixed-shape tensor work, no host sync."""

from __future__ import annotations

import torch
from torch import Tensor


def successor_update(
    keys: Tensor, successors: Tensor, weights: Tensor, ids: Tensor, strength: Tensor, decay: float
) -> None:
    """See, for every key, what follows it; in place. Of all that ever followed a key the S strongest stay.

    keys       int64 [B, n]        oldest first; a key outside [0, V) means "none"
    successors int64 [B, n, m]     what followed, or might have; an id outside [0, V) means "none"
    weights    [B or 1, n or 1, m] of them, in (0, 1], in the dtype of `strength`
    ids        int64 [B, V + 1, S] the table: successors of every key, strongest first
    strength   [B, V + 1, S]       their strength; 0: no entry, whatever the id
    Row V is scratch and stays empty. The caller checks sizes.

    An occurrence of a key weakens all its earlier successors by `decay`; one that follows again has the larger of both
    strengths: strength(x) = max over occurrences i of weight_i(x) · decay^(occurrences of the key after i). On equal
    strengths the smaller id comes first. Example, decay 0.5: key 7 followed by 1, then by 2, both with weight 1, leaves
    2 with strength 1 and 1 with 0.5.
    """
    vocab_size, num_kept = ids.shape[1] - 1, ids.shape[2]
    batch_size, num_keys = keys.shape
    if num_keys == 0:
        return
    keys = torch.where((keys < 0) | (keys >= vocab_size), vocab_size, keys)
    num_later, num_same = _count_same(keys)

    # Old entries of a key take part once, beside its last occurrence, weakened by all of them.
    is_last = (num_later == 0)[..., None]
    old_index = keys[..., None].expand(-1, -1, num_kept)
    old_strength = strength.gather(1, old_index) * decay ** num_same[..., None].to(strength.dtype)
    new_strength = weights * decay ** num_later[..., None].to(strength.dtype)
    is_none = (successors < 0) | (successors >= vocab_size)
    candidate = torch.cat((ids.gather(1, old_index), successors.masked_fill(is_none, -1)), 2).flatten(1)
    power = torch.cat((old_strength * is_last, new_strength.expand_as(successors)), 2).flatten(1)
    owner = keys.repeat_interleave(num_kept + successors.shape[2], 1)
    power = power.masked_fill(candidate < 0, 0.0)

    # Of equal (key, successor) pairs the strongest counts; then the S strongest of every key.
    order = _sort_by(owner * (vocab_size + 1) + candidate, power)
    owner, candidate, power = (x.gather(1, order) for x in (owner, candidate, power))
    is_repeated = _equals_previous(owner) & _equals_previous(candidate)
    power = power.masked_fill(is_repeated, 0.0)
    order = _sort_by(owner, power)
    owner, candidate, power = (x.gather(1, order) for x in (owner, candidate, power))
    place = _place_in_run(owner)
    is_kept = (place < num_kept) & (power > 0)

    # A touched row is emptied first. What is not kept goes to the scratch row.
    strength.scatter_(1, old_index, 0.0)
    flat = torch.where(is_kept, owner, vocab_size) * num_kept + place.clamp(max=num_kept - 1)
    ids.view(batch_size, -1).scatter_(1, flat, candidate.clamp(min=0))
    strength.view(batch_size, -1).scatter_(1, flat, power)
    strength[:, vocab_size] = 0.0


def _count_same(keys: Tensor) -> tuple[Tensor, Tensor]:
    """int64 [B, n]: how many later elements equal each one, and how many equal it in all, itself included."""
    ordered, order = keys.sort(dim=1, stable=True)
    place = _place_in_run(ordered)
    backward = _place_in_run(ordered.flip(1)).flip(1)
    later, same = torch.empty_like(place), torch.empty_like(place)
    return later.scatter_(1, order, backward), same.scatter_(1, order, place + backward + 1)


def _sort_by(key: Tensor, power: Tensor) -> Tensor:
    """Order [B, N] by ascending key, of equal keys by descending power, of equal powers as they stand."""
    by_power = power.argsort(dim=1, descending=True, stable=True)
    by_key = key.gather(1, by_power).argsort(dim=1, stable=True)
    return by_power.gather(1, by_key)


def _equals_previous(ordered: Tensor) -> Tensor:
    """bool [B, N]: whether an element equals the one before."""
    return torch.nn.functional.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0))


def _place_in_run(ordered: Tensor) -> Tensor:
    """int64 [B, N]: how many elements before each one belong to the same run of equal ones."""
    position = torch.arange(ordered.shape[1], device=ordered.device).expand_as(ordered)
    start = position.masked_fill(_equals_previous(ordered), 0).cummax(1).values
    return position - start
