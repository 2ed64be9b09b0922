from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compile_passes.compact_head_consumers import compact_head_consumers
from nanospec import DraftVocabulary
from tests.compile_passes.graph_capture import count_calls, rewrite, widths

V, D, K = 50, 8, 12
ACTIVE = [3, 7, 30, 49]


class Model(nn.Module):
    def __init__(self, consumer: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.consumer = consumer
        self.head = nn.Linear(D, V, bias=True)

    def forward(self, hidden: Tensor) -> object:
        return self.consumer(self.head(hidden))


@pytest.fixture
def vocabulary() -> DraftVocabulary:
    torch.manual_seed(0)
    vocabulary = DraftVocabulary(V, K)
    vocabulary.update(ACTIVE)
    return vocabulary


def _masked(logits: Tensor) -> Tensor:
    inactive = torch.ones(V, dtype=torch.bool)
    inactive[ACTIVE] = False
    return logits.masked_fill(inactive, -torch.inf)


COMPACTED: dict[str, Callable[[Tensor], object]] = {
    "argmax": lambda x: x.argmax(-1),
    "torch.argmax, keepdim": lambda x: torch.argmax(x, dim=2, keepdim=True),
    "max": lambda x: tuple(x.max(-1)),
    "max, values only": lambda x: torch.max(x, dim=-1, keepdim=True).values,
    "max over all": lambda x: x.max(),
    "amax": lambda x: torch.amax(x, -1),
    "topk": lambda x: tuple(x.topk(3)),
    "topk, ids only": lambda x: torch.topk(x, k=4, dim=-1).indices,
    "softmax then topk": lambda x: tuple(x.softmax(-1).topk(4)),
    "F.softmax in float64 then max": lambda x: tuple(F.softmax(x, dim=-1, dtype=torch.float64).max(-1)),
    "log_softmax then topk": lambda x: tuple(F.log_softmax(x, -1).topk(2)),
    "log_softmax of flat rows then topk": lambda x: tuple(x.flatten(0, 1).log_softmax(-1, dtype=torch.float32).topk(2)),
    "last row, cast, log_softmax, argmax": lambda x: x[:, -1].float().log_softmax(-1).argmax(-1),
    "temperature, softmax, topk": lambda x: tuple((x / 0.7).softmax(-1).topk(4)),
    "view, max": lambda x: tuple(x.view(-1, V).max(-1)),
    "reshape with a shape": lambda x: x.reshape((-1, x.shape[-1])).argmax(1),
    "rows picked": lambda x: x[1:, None, ..., 0, :].unsqueeze(1).squeeze(2).argmax(-1),
    "nn.Softmax": lambda x: nn.Softmax(dim=-1)(x).amax(-1),
    "two of them": lambda x: (x.argmax(-1), x.softmax(-1).topk(1).values),
}


@pytest.mark.parametrize("name", COMPACTED)
def test_no_wide_tensor_is_left_where_no_consumer_needs_it(name: str, vocabulary: DraftVocabulary) -> None:
    model, hidden = Model(COMPACTED[name]), torch.randn(2, 3, D)
    with torch.no_grad():
        rewritten, changed = rewrite(model, hidden, vocabulary=vocabulary)
        compiled = torch.compile(model, backend="nanospec", options={"vocabulary": vocabulary, "inner": "eager"})
        outputs = compiled(hidden)
        expected = COMPACTED[name](_masked(model.head(hidden)))
    assert "compact_head_consumers" in changed
    assert widths(rewritten, V) == []
    assert not count_calls(rewritten)["scatter_to_vocabulary"]
    torch.testing.assert_close(outputs, expected)


WIDE: dict[str, Callable[[Tensor], object]] = {
    "returned": lambda x: x,
    "argmax over rows": lambda x: x.argmax(1),
    "flat argmax": lambda x: x.argmax(),
    "softmax over rows": lambda x: x.softmax(0),
    "smallest": lambda x: x.topk(2, largest=False).indices,
    "more than the capacity": lambda x: x.topk(K + 1).values,
    "column slice": lambda x: x[..., :10].isneginf(),
    "transposed": lambda x: x.transpose(-1, -2).isneginf(),
    "sorted": lambda x: x.sort(-1, descending=True).values,
    "binary max": lambda x: torch.max(x, x + 1),
    "binary max by name": lambda x: torch.max(x, other=torch.zeros(())),
    "flattened over the vocabulary": lambda x: x.flatten().isneginf(),
}


@pytest.mark.parametrize("name", WIDE)
def test_what_needs_the_whole_vocabulary_gets_it(name: str, vocabulary: DraftVocabulary) -> None:
    model, hidden = Model(WIDE[name]), torch.randn(2, 3, D)
    with torch.no_grad():
        rewritten, _ = rewrite(model, hidden, vocabulary=vocabulary)
        compiled = torch.compile(model, backend="nanospec", options={"vocabulary": vocabulary, "inner": "eager"})
        outputs = compiled(hidden)
        expected = WIDE[name](_masked(model.head(hidden)))
    assert count_calls(rewritten)["scatter_to_vocabulary"] == 1
    torch.testing.assert_close(outputs, expected, equal_nan=True)


def _ban_after_reading(logits: Tensor) -> tuple[Tensor, Tensor]:
    first = logits.argmax(-1)
    logits[..., 30] = -torch.inf
    return first, logits.argmax(-1)


def _ban_through_a_view(logits: Tensor) -> Tensor:
    last = logits[:, -1]
    last.masked_fill_(torch.arange(V) == 30, -torch.inf)
    return logits.argmax(-1)


def _clip_in_place(logits: Tensor) -> Tensor:
    F.hardtanh(logits, -0.1, 0.1, inplace=True)
    return logits.max(-1).values


@pytest.mark.parametrize("consumer", [_ban_after_reading, _ban_through_a_view])
def test_logits_that_are_written_in_place_stay_wide(consumer: Callable, vocabulary: DraftVocabulary) -> None:
    model, hidden = Model(consumer), torch.randn(2, 3, D)
    with torch.no_grad():
        rewritten, changed = rewrite(model, hidden, vocabulary=vocabulary)
        compiled = torch.compile(model, backend="nanospec", options={"vocabulary": vocabulary, "inner": "eager"})
        outputs = compiled(hidden)
        expected = consumer(_masked(model.head(hidden)))
    assert changed == ["gather_output_head"]
    assert not count_calls(rewritten)["compact_argmax"]
    torch.testing.assert_close(outputs, expected)


def test_a_function_that_clips_in_place_is_no_use_of_logits(vocabulary: DraftVocabulary) -> None:
    model, hidden = Model(_clip_in_place), torch.randn(2, 3, D)
    with torch.no_grad():
        _, changed = rewrite(model, hidden, vocabulary=vocabulary)
    assert changed == []


def test_logits_that_are_also_returned_are_scattered_once(vocabulary: DraftVocabulary) -> None:
    model, hidden = Model(lambda x: (x, x.argmax(-1), x.log_softmax(-1).topk(2).indices)), torch.randn(2, 3, D)
    with torch.no_grad():
        rewritten, _ = rewrite(model, hidden, vocabulary=vocabulary)
    calls = count_calls(rewritten)
    assert calls["scatter_to_vocabulary"] == calls["compact_argmax"] == calls["compact_topk"] == 1
    assert not calls["argmax"] + calls["topk"]


@pytest.mark.parametrize("num_active", [0, 1, 2])
def test_topk_over_fewer_active_ids_than_k_fills_up_with_nothing(num_active: int, vocabulary: DraftVocabulary) -> None:
    vocabulary.update(ACTIVE[:num_active])
    model, hidden = Model(lambda x: tuple(x.topk(3))), torch.randn(2, 3, D)
    compiled = torch.compile(model, backend="nanospec", options={"vocabulary": vocabulary, "inner": "eager"})
    with torch.no_grad():
        values, ids = compiled(hidden)
        expected = model.head(hidden)[..., ACTIVE[:num_active]].sort(-1, descending=True).values
    torch.testing.assert_close(values[..., :num_active], expected)
    assert values[..., num_active:].isneginf().all()
    assert ((ids >= 0) & (ids < V)).all()


def test_an_empty_vocabulary_gives_the_first_id(vocabulary: DraftVocabulary) -> None:
    vocabulary.update([])
    compiled = torch.compile(
        Model(lambda x: (x.argmax(-1), x.softmax(-1))),
        backend="nanospec",
        options={"vocabulary": vocabulary, "inner": "eager"},
    )
    with torch.no_grad():
        ids, probabilities = compiled(torch.randn(2, 3, D))
    assert ids.tolist() == [[0] * 3] * 2
    assert probabilities.isnan().all(), "as softmax over nothing but -inf"


def test_ties_go_to_the_smallest_id() -> None:
    vocabulary = DraftVocabulary(V, K)
    vocabulary.update([40, 41])
    vocabulary.update([40, 41, 5, 9])  # columns: 40, 41, 5, 9
    assert vocabulary.draft_ids[:4].tolist() == [40, 41, 5, 9]
    model = Model(lambda x: (x.argmax(-1), x.max(-1).indices, x.topk(4).indices))
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    with torch.no_grad():
        model.head.bias[41] = 1.0
        compiled = torch.compile(model, backend="nanospec", options={"vocabulary": vocabulary, "inner": "eager"})
        best, best_of_max, top = compiled(torch.randn(1, D))
        assert best.tolist() == best_of_max.tolist() == [41]
        assert top.tolist() == [[41, 5, 9, 40]]
        model.head.bias[41] = 0.0
        assert compiled(torch.randn(1, D))[0].tolist() == [5]


def test_a_second_run_changes_nothing(vocabulary: DraftVocabulary) -> None:
    model = Model(lambda x: (x, x.softmax(-1), x.argmax(-1), x[:, -1].argmax(-1)))
    with torch.no_grad():
        rewritten, _ = rewrite(model, torch.randn(2, 3, D), vocabulary=vocabulary)
    calls = count_calls(rewritten)
    assert not compact_head_consumers(rewritten)
    assert count_calls(rewritten) == calls
