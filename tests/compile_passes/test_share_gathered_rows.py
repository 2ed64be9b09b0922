from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compile_passes.share_gathered_rows import share_gathered_rows
from nanospec import DraftVocabulary
from tests.compile_passes.graph_capture import count_calls, rewrite

V, D, K = 50, 8, 12
IDS = torch.tensor([4, 30, 4])


class TwoSteps(nn.Module):
    """Two products with one head, as in a drafting loop."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(D, D), nn.Linear(D, V)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(hidden).argmax(-1), self.head(self.layer(hidden)).argmax(-1)


def _select_twice(hidden: Tensor, weight: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    return (hidden @ weight.t())[..., ids.abs()], (hidden.relu() @ weight.t()).index_select(-1, ids)


def _select_the_same_twice(hidden: Tensor, weight: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    return (hidden @ weight.t()).index_select(-1, ids), (hidden.relu() @ weight.t()).index_select(-1, ids)


def _write_between(hidden: Tensor, weight: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    first = (hidden @ weight.t()).index_select(-1, ids)
    weight.add_(1)
    return first, (hidden @ weight.t()).index_select(-1, ids)


def test_two_products_with_one_weight_in_training_gather_once() -> None:
    vocabulary = DraftVocabulary(V, K)
    vocabulary.update([1, 2, 3])
    model, hidden = TwoSteps(), torch.randn(2, D)
    rewritten, changed = rewrite(model, hidden, vocabulary=vocabulary)
    calls = count_calls(rewritten)
    assert changed[-1] == "share_gathered_rows"
    assert calls["index_select"] == 1
    assert calls["shared_gathered_linear"] == 2
    compiled = torch.compile(model, backend="nanospec", options={"vocabulary": vocabulary, "inner": "aot_eager"})
    for ids, full in zip(compiled(hidden), (model.head(hidden), model.head(model.layer(hidden))), strict=True):
        assert torch.equal(ids, full[..., [1, 2, 3]].argmax(-1) + 1)


def test_packed_rows_need_no_gathering() -> None:
    with torch.no_grad():
        rewritten, changed = rewrite(TwoSteps(), torch.randn(2, D), vocabulary=DraftVocabulary(V, K))
    assert "share_gathered_rows" not in changed
    assert not count_calls(rewritten)["index_select"]


def test_equal_selections_share_and_others_do_not() -> None:
    inputs = torch.randn(2, D), torch.randn(V, D), IDS
    same, changed = rewrite(_select_the_same_twice, *inputs)
    assert changed == ["gather_selected_linear", "share_gathered_rows"]
    assert count_calls(same)["index_select"] == 1
    different, changed = rewrite(_select_twice, *inputs)
    assert changed == ["gather_selected_linear"]
    assert not count_calls(different)["index_select"]
    with pytest.warns(UserWarning, match="no vocabulary"):
        outputs = torch.compile(_select_the_same_twice, backend="nanospec", options={"inner": "eager"})(*inputs)
    torch.testing.assert_close(outputs, _select_the_same_twice(*inputs))


def test_a_weight_that_is_written_in_between_is_gathered_twice() -> None:
    inputs = torch.randn(2, D), torch.randn(V, D), IDS
    _, changed = rewrite(_write_between, inputs[0], inputs[1].clone(), inputs[2])
    assert "share_gathered_rows" not in changed
    compiled = torch.compile(_write_between, backend="nanospec", options={"inner": "eager"})
    with pytest.warns(UserWarning, match="no vocabulary"):
        outputs = compiled(inputs[0], inputs[1].clone(), inputs[2])
    torch.testing.assert_close(outputs, _write_between(inputs[0], inputs[1].clone(), inputs[2]))


def test_a_second_run_changes_nothing() -> None:
    rewritten, _ = rewrite(_select_the_same_twice, torch.randn(2, D), torch.randn(V, D), IDS)
    calls = count_calls(rewritten)
    assert not share_gathered_rows(rewritten)
    assert count_calls(rewritten) == calls
