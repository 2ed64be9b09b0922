from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compile_passes.gather_selected_linear import gather_selected_linear
from tests.compile_passes.graph_capture import count_calls, rewrite

V, D = 50, 8


class Model(nn.Module):
    def __init__(self, select: Callable[[Tensor, Tensor], object], bias: bool = False) -> None:
        super().__init__()
        self.select = select
        self.head = nn.Linear(D, V, bias=bias)

    def forward(self, hidden: Tensor, ids: Tensor) -> object:
        return self.select(self.head(hidden), ids)


IDS = torch.tensor([4, 4, 49, 0])
SELECTIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor]] = {
    "index_select": (lambda x, ids: x.index_select(-1, ids), IDS),
    "torch.index_select": (lambda x, ids: torch.index_select(x, dim=2, index=ids), IDS),
    "ellipsis": (lambda x, ids: x[..., ids], IDS),
    "all slices": (lambda x, ids: x[:, :, ids], IDS),
    "int32 ids": (lambda x, ids: x[..., ids], IDS.int()),
    "ids from the end": (lambda x, ids: x[..., ids], torch.tensor([-1, 3, -50])),
    "no ids": (lambda x, ids: x[..., ids], torch.zeros(0, dtype=torch.int64)),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", SELECTIONS)
def test_only_the_selected_columns_are_computed(name: str, bias: bool) -> None:
    select, ids = SELECTIONS[name]
    model, hidden = Model(select, bias).double(), torch.randn(2, 3, D, dtype=torch.float64)
    with torch.no_grad():
        rewritten, changed = rewrite(model, hidden, ids)
        with pytest.warns(UserWarning, match="no vocabulary"):
            selected = torch.compile(model, backend="nanospec", options={"inner": "eager"})(hidden, ids)
        torch.testing.assert_close(selected, model(hidden, ids))
    assert changed == ["gather_selected_linear"]
    calls = count_calls(rewritten)
    assert calls["shared_gathered_linear"] == 1
    assert not calls["linear"]


DECLINED: dict[str, tuple[Callable[[Tensor, Tensor], object], Tensor]] = {
    "logits are returned too": (lambda x, ids: (x, x[..., ids]), IDS),
    "a mask": (lambda x, ids: x[..., ids], torch.arange(V) < 5),
    "ids in two dimensions": (lambda x, ids: x[..., ids], IDS.view(2, 2)),
    "rows selected": (lambda x, ids: x.index_select(1, ids), torch.tensor([0, 2])),
    "one row": (lambda x, ids: x[0, :, ids], IDS),
    "more columns than there are": (lambda x, ids: x[..., ids], torch.zeros(V + 1, dtype=torch.int64)),
}


@pytest.mark.parametrize("name", DECLINED)
def test_graphs_in_doubt_are_left_alone(name: str) -> None:
    select, ids = DECLINED[name]
    with torch.no_grad():
        rewritten, changed = rewrite(Model(select), torch.randn(2, 3, D), ids)
    assert changed == []
    assert count_calls(rewritten)["linear"] == 1


def test_a_product_whose_input_is_written_before_the_selection_stays_where_it_is() -> None:
    head = nn.Linear(D, V)

    def select(hidden: Tensor, ids: Tensor) -> Tensor:
        logits = head(hidden)
        hidden.zero_()
        return logits[..., ids]

    hidden = torch.randn(2, D)
    with torch.no_grad():
        expected = head(hidden)[..., IDS]
        _, changed = rewrite(select, hidden.clone(), IDS)
        with pytest.warns(UserWarning, match="no vocabulary"):
            selected = torch.compile(select, backend="nanospec", options={"inner": "eager"})(hidden, IDS)
    assert changed == []
    torch.testing.assert_close(selected, expected)


def test_the_selection_is_laid_out_as_eager_code_would() -> None:
    model = Model(lambda x, ids: x.index_select(-1, ids).view(-1)).bfloat16()
    hidden = torch.randn(2, 3, D, dtype=torch.bfloat16)
    with torch.no_grad(), pytest.warns(UserWarning, match="no vocabulary"):
        selected = torch.compile(model, backend="nanospec", options={"inner": "aot_eager"})(hidden, IDS)
    assert selected.shape == (2 * 3 * len(IDS),)


def test_gradients_of_repeated_columns_add_up() -> None:
    model, hidden = Model(SELECTIONS["ellipsis"][0], bias=True).double(), torch.randn(2, D, dtype=torch.float64)
    hidden.requires_grad_()
    tensors = (hidden, *model.parameters())
    expected = torch.autograd.grad(model(hidden, IDS).square().sum(), tensors)
    with pytest.warns(UserWarning, match="no vocabulary"):
        selected = torch.compile(model, backend="nanospec", options={"inner": "aot_eager"})(hidden, IDS)
    for gradient, wanted in zip(torch.autograd.grad(selected.square().sum(), tensors), expected, strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_a_second_run_changes_nothing() -> None:
    with torch.no_grad():
        rewritten, _ = rewrite(Model(SELECTIONS["ellipsis"][0]), torch.randn(2, 3, D), IDS)
    calls = count_calls(rewritten)
    assert not gather_selected_linear(rewritten)
    assert count_calls(rewritten) == calls
