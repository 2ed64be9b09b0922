"""Left-padded rows of `generate`: the prompt inside each, and rows of different lengths back into one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def unpadded_rows(input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None = None) -> list[Tensor]:
    """The prompt of every row, int64 [1, n].

    input_ids int64 [B, P]; attention_mask [B, P], None for no padding; position_ids, where given, must count the tokens
    of a row from 0.

    Raises NotImplementedError for a mask with gaps or with padding on the right and for other positions, ValueError for
    a row of nothing but padding.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids.device)
    if mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must have the shape of input_ids {list(input_ids.shape)}, got {list(mask.shape)}"
        )
    is_text = mask != 0
    lengths = is_text.sum(1).tolist()
    rows = []
    for row, length in enumerate(lengths):
        if length == 0:
            raise ValueError(f"attention_mask must leave every row a token, got none in row {row}")
        if not bool(is_text[row, -length:].all()):
            raise NotImplementedError(
                f"attention_mask must pad on the left alone, got {mask[row].tolist()} in row {row}"
            )
        rows.append(input_ids[row : row + 1, -length:])
        if position_ids is not None:
            _check_positions(position_ids, row, length)
    return rows


def padded_rows(rows: Sequence[Tensor], pad_id: int | None) -> Tensor:
    """Rows int64 [1, n] of different lengths -> [B, longest], filled up on the right with `pad_id`.

    Raises ValueError where there is something to fill and no id to do it with.
    """
    longest = max(row.shape[1] for row in rows)
    if pad_id is None and any(row.shape[1] < longest for row in rows):
        raise ValueError("pad_token_id must be set for rows of different lengths, got None")
    return torch.cat([torch.nn.functional.pad(row, (0, longest - row.shape[1]), value=pad_id or 0) for row in rows])


def _check_positions(position_ids: Tensor, row: int, length: int) -> None:
    expected = torch.arange(length, device=position_ids.device)
    positions = position_ids[row] if position_ids.dim() == 2 and row < position_ids.shape[0] else position_ids
    if positions.dim() != 1 or not torch.equal(positions[-length:], expected):
        raise NotImplementedError(f"position_ids must count the tokens of a row from 0, got others in row {row}")
