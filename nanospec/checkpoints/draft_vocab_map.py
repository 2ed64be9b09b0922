"""Which ids of the target a draft with a smaller head scores: d2t and t2d, checked against each other."""

from __future__ import annotations

import torch
from torch import Tensor

MAPS = ("d2t", "t2d")


def vocab_maps(ids: Tensor, vocab_size: int) -> dict[str, Tensor]:
    """The maps that say which id each row of a draft's head scores, ascending, as `read_vocab_map` reads them.

    Example: ids [0, 3, 4] of 5 give d2t [0, 2, 2] and t2d [1, 0, 0, 1, 1].
    """
    is_sayable = torch.zeros(vocab_size, dtype=torch.bool, device=ids.device)
    return {"d2t": ids - torch.arange(ids.shape[0], device=ids.device), "t2d": is_sayable.index_fill(0, ids, True)}


def read_vocab_map(d2t: Tensor | None, t2d: Tensor | None, num_rows: int, vocab_size: int) -> Tensor | None:
    """int64 [num_rows], the id of the target that each row of the draft's head scores; None if row i scores id i.

    d2t  [num_rows], offsets: row i scores id i + d2t[i]
    t2d  [vocab_size], not 0 for the ids that some row scores, in order

    One of them is enough; d2t in floating point, which cannot hold large offsets, is not read if there is t2d, and is
    refused without it where an offset may have been rounded.
    Example: d2t [0, 2, 2] and t2d [1, 0, 0, 1, 1] both say ids 0, 3, 4.

    Raises ValueError for maps of another shape, ids that repeat or leave the vocabulary, maps that disagree, and for a
    head of fewer rows than ids without any map.
    """
    if d2t is None and t2d is None:
        if num_rows != vocab_size:
            raise ValueError(f"draft must hold 'd2t' or 't2d' because its head scores {num_rows} of {vocab_size} ids")
        return None
    if d2t is not None and tuple(d2t.shape) != (num_rows,):
        raise ValueError(f"draft d2t must have shape ({num_rows},) as its head has rows, got {tuple(d2t.shape)}")
    if d2t is not None and d2t.is_complex():
        raise ValueError(f"draft d2t must hold integers, got {d2t.dtype}")
    from_mask = None if t2d is None else _from_mask(t2d, num_rows, vocab_size)
    if d2t is None or (d2t.is_floating_point() and from_mask is not None):
        ids = from_mask
    else:
        _refuse_rounded(d2t)
        ids = _from_offsets(d2t, num_rows, vocab_size)
    assert ids is not None, "one of the maps is there"
    if from_mask is not None and not torch.equal(ids, from_mask):
        row = int((ids != from_mask).nonzero()[0])
        raise ValueError(
            f"draft d2t and t2d must name the same ids, got {int(ids[row])} and {int(from_mask[row])} for row {row}"
        )
    return None if torch.equal(ids, torch.arange(vocab_size)) else ids


def _refuse_rounded(d2t: Tensor) -> None:
    """ValueError for offsets that floating point does not hold exactly: in float16 2049 is stored as 2048."""
    if not d2t.is_floating_point():
        return
    limit, offsets = 2 / torch.finfo(d2t.dtype).eps, d2t.double()
    inexact = offsets[~(offsets.abs() < limit) | (offsets != offsets.round())]
    if inexact.numel():
        raise ValueError(
            f"draft d2t must hold integers where there is no t2d, or whole numbers below {limit:.0f}, up to which "
            f"{d2t.dtype} is exact, got {inexact[0].item():g}"
        )


def _from_offsets(d2t: Tensor, num_rows: int, vocab_size: int) -> Tensor:
    ids = torch.arange(num_rows) + d2t.long()
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if outside.numel():
        raise ValueError(f"draft d2t must lead to ids between 0 and {vocab_size - 1}, got {int(outside[0])}")
    if ids.unique().shape[0] != num_rows:
        raise ValueError(f"draft d2t must lead to distinct ids, got {num_rows - ids.unique().shape[0]} repetitions")
    return ids


def _from_mask(t2d: Tensor, num_rows: int, vocab_size: int) -> Tensor:
    if tuple(t2d.shape) != (vocab_size,):
        raise ValueError(f"draft t2d must have shape ({vocab_size},), one per id of the target, got {tuple(t2d.shape)}")
    ids = t2d.ne(0).nonzero()[:, 0]
    if ids.shape[0] != num_rows:
        raise ValueError(f"draft t2d must select {num_rows} ids as its head has rows, got {ids.shape[0]}")
    return ids
