"""Rows of a left-padded batch: what is in them, and back into one tensor."""

from __future__ import annotations

import pytest
import torch

from nanospec.integrations.transformers.prompts import padded_rows, unpadded_rows
from tests.integrations.transformers.generate_calls import prompt_of

IDS = torch.tensor([[0, 7, 8], [3, 0, 4]])
MASK = torch.tensor([[0, 1, 1], [1, 1, 1]])


@pytest.mark.parametrize("mask", [MASK, MASK.bool(), MASK.double()])
def test_padding_is_what_the_mask_leaves_out(mask):
    positions = torch.tensor([[1, 0, 1], [0, 1, 2]])
    assert [row.tolist() for row in unpadded_rows(IDS, mask, positions)] == [[[7, 8]], [[3, 0, 4]]]
    assert [row.tolist() for row in unpadded_rows(IDS, None)] == [[[0, 7, 8]], [[3, 0, 4]]]


def test_rows_are_filled_up_on_the_right():
    assert padded_rows([prompt_of(1, 2, 3), prompt_of(4)], 9).tolist() == [[1, 2, 3], [4, 9, 9]]
    assert padded_rows([prompt_of(1, 2), prompt_of(4, 5)], None).tolist() == [[1, 2], [4, 5]]


def test_what_is_no_left_padding_is_refused():
    with pytest.raises(ValueError, match=r"must have the shape of input_ids \[2, 3\], got \[2, 2\]"):
        unpadded_rows(IDS, MASK[:, 1:])
    with pytest.raises(ValueError, match="must leave every row a token, got none in row 1"):
        unpadded_rows(IDS, torch.tensor([[1, 1, 1], [0, 0, 0]]))
    with pytest.raises(NotImplementedError, match=r"must pad on the left alone, got \[1, 0, 1\] in row 1"):
        unpadded_rows(IDS, torch.tensor([[0, 1, 1], [1, 0, 1]]))
    with pytest.raises(NotImplementedError, match="position_ids must count the tokens of a row from 0, .* in row 0"):
        unpadded_rows(IDS, MASK, torch.tensor([[0, 1, 2], [0, 1, 2]]))
    with pytest.raises(ValueError, match="pad_token_id must be set for rows of different lengths, got None"):
        padded_rows([prompt_of(1, 2), prompt_of(3)], None)
