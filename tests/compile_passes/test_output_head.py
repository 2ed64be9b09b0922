from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compile_passes.gather_output_head import gather_output_head
from nanospec import DraftVocabulary
from tests.compile_passes.graph_capture import count_calls, rewrite

V, D, K = 50, 8, 12
ACTIVE = [3, 7, 49]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def vocabulary() -> DraftVocabulary:
    vocabulary = DraftVocabulary(V, K)
    vocabulary.update(ACTIVE)
    return vocabulary


class Model(nn.Module):
    """A layer, then a head in some spelling."""

    def __init__(self, spelling: Callable[[nn.Linear, Tensor], Tensor], bias: bool = False) -> None:
        super().__init__()
        self.spelling = spelling
        self.layer = nn.Linear(D, D)
        self.head = nn.Linear(D, V, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.spelling(self.head, self.layer(hidden))


def _as_inner_projection(head: nn.Linear, h: Tensor) -> Tensor:
    return F.linear(torch.relu(head(h)), head.weight.t())


def _soft_embedding(head: nn.Linear, h: Tensor) -> Tensor:
    return head(h).softmax(-1) @ torch.ones(V, D, dtype=h.dtype)


def _weight_is_computed(head: nn.Linear, h: Tensor) -> Tensor:
    return F.linear(h, head.weight * 2)


def _under_autocast(head: nn.Linear, h: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return head(h)


def _einsum(head: nn.Linear, h: Tensor) -> Tensor:
    return torch.einsum("...d,vd->...v", h, head.weight)


def _scaled_addmm(head: nn.Linear, h: Tensor) -> Tensor:
    return torch.addmm(h.new_zeros(V), h[0], head.weight.t(), alpha=0.5)


def _matrix_times_vector(head: nn.Linear, h: Tensor) -> Tensor:
    return torch.ones(4, V, dtype=h.dtype).mv(head(h)[0, 0])


def _tensor_product(head: nn.Linear, h: Tensor) -> Tensor:
    return torch.tensordot(head(h).relu(), torch.ones(V, 3, dtype=h.dtype), 1)


def _weighted_sum(head: nn.Linear, h: Tensor) -> Tensor:
    return (head(h)[..., None, :] * torch.ones(4, V, dtype=h.dtype)).sum(-1)


def _stored_elsewhere(head: nn.Linear, h: Tensor) -> Tensor:
    buffer = torch.empty(2, 3, V, dtype=h.dtype)
    buffer[:] = head(h)
    return F.linear(buffer, torch.ones(4, V, dtype=h.dtype))


def _checkpointed_rest(head: nn.Linear, h: Tensor) -> Tensor:
    rest = torch.ones(4, V, dtype=h.dtype)
    return torch.utils.checkpoint.checkpoint(lambda x: F.linear(x, rest), head(h), use_reentrant=False)


def _capped_in_statements(head: nn.Linear, h: Tensor) -> Tensor:
    logits = head(h)
    logits.div_(30)
    logits.tanh_()
    logits.mul_(30)
    return logits


def _capped_beside_raw(head: nn.Linear, h: Tensor) -> tuple[Tensor, Tensor]:
    logits = head(h)
    return logits, 30 * torch.tanh(logits / 30)


def _vectorised(head: nn.Linear, h: Tensor) -> Tensor:
    return torch.vmap(lambda x: F.linear(x, head.weight))(h)


@pytest.mark.parametrize(
    "spelling",
    [
        _as_inner_projection,
        _soft_embedding,
        _weight_is_computed,
        _under_autocast,
        _einsum,
        _scaled_addmm,
        _matrix_times_vector,
        _tensor_product,
        _weighted_sum,
        _stored_elsewhere,
        _checkpointed_rest,
        _capped_in_statements,
        _capped_beside_raw,
        _vectorised,
    ],
)
def test_graphs_in_doubt_are_left_alone(spelling: Callable, vocabulary: DraftVocabulary) -> None:
    model, hidden = Model(spelling), torch.randn(2, 3, D)
    with torch.no_grad():
        rewritten, changed = rewrite(model, hidden, vocabulary=vocabulary, passes=(gather_output_head,))
    assert changed == []
    assert not count_calls(rewritten)["shared_gathered_linear"]
