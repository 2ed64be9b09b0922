"""The empty vocabulary."""

from __future__ import annotations

import torch

from nanospec import VocabSelector
from nanospec.records import Observation
from nanospec.vocab.none import NoVocab


def test_no_id_is_ever_active_and_a_tree_of_any_width_fits():
    vocab = NoVocab(9)
    assert isinstance(vocab, VocabSelector)
    vocab.learn(Observation(torch.tensor([[1, 2]]), torch.tensor([[[3], [4]]]), torch.tensor([[2, 5]])))
    vocab.reset()
    chosen = vocab.select(3)
    assert chosen.count.tolist() == [0]
    assert chosen.draft_ids.shape == (1, 9)
