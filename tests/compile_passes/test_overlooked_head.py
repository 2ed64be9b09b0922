"""Which graphs with a vocabulary are warned of: those with a head that stays as it is, and no others."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compile_passes.overlooked_head import OverlookedHead, find_overlooked_head
from compile_passes.rewrite_context import require_context
from nanospec import DraftVocabulary
from tests.compile_passes.graph_capture import rewrite

V, D = 50, 8
HIDDEN = torch.ones(2, 3, D)


def head_of(num_rows: int) -> nn.Linear:
    return nn.Linear(D, num_rows).requires_grad_(False)


def overlooked(function: Callable, head: nn.Module | None = None) -> OverlookedHead | None:
    graph_module, _ = rewrite(function, HIDDEN, vocabulary=DraftVocabulary(V, 12), head=head)
    return find_overlooked_head(graph_module, require_context(graph_module))


def _with_bias_of_ones_own(head: nn.Linear, h: Tensor) -> Tensor:
    return (h @ head.weight.T + head.bias).float()


def _loss(head: nn.Linear, h: Tensor) -> Tensor:
    return F.cross_entropy(head(h).view(-1, head.out_features), torch.zeros(6, dtype=torch.int64))


def _best_ids(head: nn.Linear, h: Tensor) -> Tensor:
    return (30 * torch.tanh(head(h[:, -1:]) / 30)).argmax(-1)


@pytest.mark.parametrize("num_rows", [V - 1, V + 1, 10, 8 * V])
@pytest.mark.parametrize("use", [lambda head, h: head(h), _with_bias_of_ones_own, _loss, _best_ids])
def test_a_head_of_another_size_is_found(use: Callable, num_rows: int) -> None:
    head = head_of(num_rows)
    found = overlooked(lambda h: use(head, torch.tanh(h)))
    assert found is not None
    assert found.num_rows == num_rows


def test_a_head_of_the_right_size_is_found_where_a_pass_declines() -> None:
    head = head_of(V)

    def under_autocast(h: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return head(h)

    found = overlooked(under_autocast)
    assert found is not None
    assert found.num_rows == V
    assert overlooked(head) is None


def _inner_layer(wide: nn.Linear, h: Tensor) -> Tensor:
    return torch.relu(wide(h)) @ wide.weight


def _parts_of_attention(wide: nn.Linear, h: Tensor) -> list[Tensor]:
    return [part.transpose(1, 2) for part in wide(h).view(2, 3, -1, 6).chunk(3, 2)]


def _experts(wide: nn.Linear, h: Tensor) -> Tensor:
    weight, _ = wide(h).softmax(-1).max(-1, keepdim=True)
    return h * weight


@pytest.mark.parametrize("use", [_inner_layer, _parts_of_attention, _experts])
def test_other_wide_layers_are_none(use: Callable) -> None:
    wide = head_of(54)
    assert overlooked(lambda h: use(wide, h)) is None


@pytest.mark.parametrize("num_rows", [2, D, 6])
def test_narrow_layers_whose_result_is_returned_are_none(num_rows: int) -> None:
    narrow = head_of(num_rows)
    assert overlooked(lambda h: narrow(h)) is None


def test_with_a_named_head_only_that_one_counts() -> None:
    named, other = head_of(V), head_of(V + 1)
    assert overlooked(lambda h: other(h), named) is None
    assert overlooked(lambda h: (other(h), named(h)), named) is None

    def under_autocast(h: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return named(h)

    assert overlooked(under_autocast, named) is not None


class Broken(nn.Module):
    """A model of three graphs, of which the last has the head."""

    def __init__(self, num_rows: int) -> None:
        super().__init__()
        self.first, self.second, self.lm_head = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, num_rows)
        self.requires_grad_(False)

    def forward(self, h: Tensor) -> Tensor:
        h = torch.tanh(self.first(h))
        torch._dynamo.graph_break()
        h = torch.tanh(self.second(h))
        torch._dynamo.graph_break()
        return self.lm_head(h)


class BrokenMLP(nn.Module):
    """An MLP, broken behind the product that widens, and the head of a model whose layer it is."""

    def __init__(self, width: int, num_rows: int) -> None:
        super().__init__()
        self.up, self.down, self.lm_head = nn.Linear(D, width), nn.Linear(width, D), nn.Linear(D, num_rows)
        self.requires_grad_(False)

    def layer(self, h: Tensor) -> Tensor:
        wide = self.up(h)
        torch._dynamo.graph_break()
        return self.down(torch.relu(wide))

    def forward(self, h: Tensor) -> Tensor:
        return self.lm_head(h + self.layer(h))


class BrokenBehindHead(nn.Module):
    """A model that does something with its logits that Dynamo cannot take into the graph."""

    def __init__(self, num_rows: int, choose: Callable[[Tensor], Tensor] = torch.clone) -> None:
        super().__init__()
        self.lm_head, self.choose = head_of(num_rows), choose

    def forward(self, h: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):  # so that no pass restricts it
            logits = self.choose(self.lm_head(h))
        torch._dynamo.graph_break()
        return torch.relu(logits)


def warnings_of(model: nn.Module, head: nn.Module | None = None) -> list[str]:
    torch._dynamo.reset()
    options = {"vocabulary": DraftVocabulary(V, 12), "inner": "eager", "head": head}
    compiled = torch.compile(model, backend="nanospec", options=options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compiled(HIDDEN)
    return [str(warning.message) for warning in caught if "nanospec" in str(warning.message)]


def test_the_backend_warns_once_for_the_graph_with_the_head_and_not_where_it_is_restricted() -> None:
    (text,) = warnings_of(Broken(V + 1))
    assert "vocab_size 50, the graph scores 51 ids with l_self_modules_lm_head_parameters_weight_" in text
    assert 'TORCH_LOGS="+compile_passes" shows why' in text
    assert warnings_of(Broken(V)) == []


@pytest.mark.parametrize("width", [9, 40, V - 1, V + 1, 4 * V])
def test_a_product_that_a_graph_break_hands_to_the_rest_of_the_model_is_no_head(width: int) -> None:
    assert warnings_of(BrokenMLP(width, V)) == []


@pytest.mark.parametrize("num_rows", [V - 1, V + 1])
def test_the_head_of_a_model_that_breaks_elsewhere_is_still_found(num_rows: int) -> None:
    (text,) = warnings_of(BrokenMLP(40, num_rows))
    assert f"the graph scores {num_rows} ids" in text


def test_at_a_graph_break_a_head_is_known_by_its_size_its_name_or_a_choice() -> None:
    (text,) = warnings_of(BrokenBehindHead(V))
    assert "the graph scores 50 ids" in text
    assert warnings_of(BrokenBehindHead(V + 1)) == []
    (text,) = warnings_of(BrokenBehindHead(V + 1, lambda logits: logits.topk(3).values))
    assert "the graph scores 51 ids" in text
    named = BrokenBehindHead(V)
    assert len(warnings_of(named, named.lm_head)) == 1
