"""When the target's choice counts as lacking."""

from __future__ import annotations

import torch

from nanospec.training.measure_lack import lack_per_block, lacking_choices
from nanospec.vocab.base_size import BLOCK_IDS, MOST_BLOCKS


def test_a_choice_is_lacking_until_the_step_after_it_was_first_seen():
    # The prompt is 1 2. After tokens 3, 4, 5, 6 the target would say 9, 9, 2 and 9; 9 first shows after token 3.
    token_ids = torch.tensor([1, 2, 3, 4, 5, 6])
    top_ids = torch.tensor([[7], [8], [9], [9], [2], [9]])
    lacking = lacking_choices(token_ids, top_ids, prompt_length=2, vocab_size=10)
    assert lacking.int().tolist() == [
        [1, 1, 1, 1],
        [0, 1, 1, 1],  # as the first token of a step that began behind token 3, it is known
        [0, 0, 0, 0],
        [0, 0, 0, 1],
    ]


def test_lacking_choices_are_counted_by_the_block_that_has_them():
    rank = torch.tensor([0, BLOCK_IDS, 2**40])
    lacking = torch.tensor([[True, False], [True, True], [True, True], [False, False]])
    counts = lack_per_block(lacking, torch.tensor([0, 1, 2, 1]), rank)
    assert counts.tolist() == [0.5, 1.0] + [0.0] * (MOST_BLOCKS - 2)
