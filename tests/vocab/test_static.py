"""A fixed list as a policy."""

from __future__ import annotations

import pytest
import torch

from nanospec.records import Observation
from nanospec.vocab.static import StaticVocab


def test_the_list_keeps_its_order_and_its_rows_are_contiguous() -> None:
    weight = torch.nn.Parameter(torch.randn(7, 4))
    vocab = StaticVocab(weight, torch.tensor([5, 0, 3], dtype=torch.int32))
    vocab.reset()
    vocab.learn(Observation(torch.tensor([[1, 2]]), torch.tensor([[[3], [4]]]), torch.tensor([[2, 5]])))
    selected = vocab.select(2)
    assert (vocab.name, vocab.observes) == ("static-3", False)
    assert selected.draft_ids.tolist() == [[5, 0, 3]]
    assert selected.draft_ids.dtype == torch.int64
    assert selected.count.tolist() == [3]
    assert selected.rows is not None
    assert selected.rows.is_contiguous()
    assert torch.equal(selected.rows, weight[[5, 0, 3]][None])
    assert not vocab.state_dict()
    assert not list(vocab.parameters())


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (torch.zeros(0, dtype=torch.int64), ValueError, "ids must be 1-D and not empty"),
        (torch.tensor([[1]]), ValueError, "ids must be 1-D and not empty"),
        (torch.tensor([1, 7]), ValueError, "ids: .* between 0 and 6, got 7 at index 1"),
        (torch.tensor([1, 1]), ValueError, "ids: .* distinct, got 1"),
        (torch.tensor([1.0]), TypeError, "ids: token ids must be integers, got 1.0 at index 0"),
    ],
)
def test_a_bad_list_is_refused(ids: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        StaticVocab(torch.zeros(7, 4), ids)
