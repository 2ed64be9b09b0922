"""The whole vocabulary as a policy."""

from __future__ import annotations

import torch

from nanospec.records import Observation
from nanospec.vocab.full import FullVocab


def test_every_id_is_drafted_and_the_head_is_not_copied() -> None:
    weight = torch.nn.Parameter(torch.randn(7, 4))
    vocab = FullVocab(weight)
    for selected in (vocab.select(), vocab.select(3)):
        assert selected.draft_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6]]
        assert selected.count.tolist() == [7]
        assert selected.rows is not None
        assert selected.rows.shape == (1, 7, 4)
        assert selected.rows.data_ptr() == weight.data_ptr()


def test_nothing_is_saved_trained_or_learned() -> None:
    vocab = FullVocab(torch.randn(7, 4))
    vocab.reset()
    vocab.learn(Observation(torch.tensor([[1, 2]]), torch.tensor([[[3], [4]]]), torch.tensor([[2, 5]])))
    assert (vocab.name, vocab.observes) == ("full", False)
    assert not vocab.state_dict()
    assert not list(vocab.parameters())
