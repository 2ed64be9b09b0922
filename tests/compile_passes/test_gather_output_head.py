from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compile_passes.gather_output_head import gather_output_head
from compile_passes.rewrite_context import require_context
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


SPELLINGS = {
    "module": lambda head, h: head(h),
    "F.linear": lambda head, h: F.linear(h, head.weight, head.bias),
    "F.linear by name": lambda head, h: F.linear(input=h, weight=head.weight, bias=head.bias),
    "@ t()": lambda head, h: h @ head.weight.t(),
    "@ T": lambda head, h: h @ head.weight.T,
    "@ mT": lambda head, h: h @ head.weight.mT,
    "@ transpose": lambda head, h: h @ head.weight.transpose(0, 1),
    "@ transpose from the end": lambda head, h: h @ torch.transpose(head.weight, -1, -2),
    "@ permute": lambda head, h: h @ head.weight.permute(1, 0),
    "matmul": lambda head, h: torch.matmul(h, head.weight.t()),
    "method matmul": lambda head, h: h.matmul(head.weight.t()),
    "mm": lambda head, h: torch.mm(h[0], head.weight.t()),
    "addmm": lambda head, h: torch.addmm(head.bias if head.bias is not None else h.new_zeros(V), h[0], head.weight.T),
    "sliced before": lambda head, h: head(h[:, -1:]),
    "cast after": lambda head, h: head(h).float(),
    "scaled": lambda head, h: head(h) * 0.25,
    "scaled by a tensor": lambda head, h: head(h) * torch.full((), 0.25),
    "soft cap": lambda head, h: torch.tanh(head(h) / 30.0) * 30.0,
    "soft cap in place": lambda head, h: head(h).div_(30.0).tanh_().mul_(30.0),
    "soft cap after a cast, sliced": lambda head, h: torch.tanh(head(h).float()[:, -1] / 5) * 5,
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_gathered_and_an_identity_on_active_ids(
    name: str, bias: bool, vocabulary: DraftVocabulary
) -> None:
    model, hidden = Model(SPELLINGS[name], bias).double(), torch.randn(2, 3, D, dtype=torch.float64)
    with torch.no_grad():
        rewritten, changed = rewrite(model, hidden, vocabulary=vocabulary)
        expected = model(hidden)
        compiled = torch.compile(model, backend="nanospec", options={"vocabulary": vocabulary, "inner": "eager"})
        logits = compiled(hidden)
    assert "gather_output_head" in changed
    calls = count_calls(rewritten)
    assert calls["shared_gathered_linear"] == 1
    assert calls["linear"] == 1, "the layer stays, the head goes"
    assert not calls["matmul"] + calls["mm"] + calls["addmm"]
    torch.testing.assert_close(logits[..., ACTIVE], expected[..., ACTIVE])
    inactive = [token for token in range(V) if token not in ACTIVE]
    assert logits[..., inactive].isneginf().all()
    assert logits.shape == expected.shape
    assert logits.dtype == expected.dtype


def test_a_tied_embedding_is_still_looked_up_whole(vocabulary: DraftVocabulary) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(V, D)
            self.head = nn.Linear(D, V, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
            hidden = self.embed(ids)
            return self.head(hidden), hidden

    model, ids = Tied(), torch.tensor([[0, 1, 48]])
    with torch.no_grad():
        rewritten, _ = rewrite(model, ids, vocabulary=vocabulary)
        compiled = torch.compile(model, backend="nanospec", options={"vocabulary": vocabulary, "inner": "eager"})
        logits, hidden = compiled(ids)
    assert count_calls(rewritten)["embedding"] == 1
    assert torch.equal(hidden, model(ids)[1])
    torch.testing.assert_close(logits[..., ACTIVE], model(ids)[0][..., ACTIVE])


def test_logits_that_are_returned_before_their_cap_are_masked_before_it(vocabulary: DraftVocabulary) -> None:
    def both(head: nn.Linear, h: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(h)
        return logits, logits * 2

    model, hidden = Model(both), torch.randn(2, D)
    with torch.no_grad():
        compiled = torch.compile(model, backend="nanospec", options={"vocabulary": vocabulary, "inner": "eager"})
        logits, doubled = compiled(hidden)
    assert logits.isfinite().sum(-1).tolist() == [3, 3]
    assert torch.equal(doubled, logits * 2)


def test_medusa_heads_are_all_gathered(vocabulary: DraftVocabulary) -> None:
    class Medusa(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleList(nn.Linear(D, V, bias=False) for _ in range(3))

        def forward(self, hidden: Tensor) -> Tensor:
            return torch.stack([head(hidden) for head in self.heads])

    with torch.no_grad():
        rewritten, _ = rewrite(Medusa(), torch.randn(2, D), vocabulary=vocabulary)
    assert count_calls(rewritten)["shared_gathered_linear"] == 3
    assert len(require_context(rewritten).static_inputs) == 2 + 3, "ids, count, and rows of three weights"


def test_an_unrolled_drafting_loop_is_gathered_at_every_step(vocabulary: DraftVocabulary) -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(V, D), nn.Linear(D, V)

        def forward(self, ids: Tensor) -> list[Tensor]:
            drafted = []
            for _ in range(3):
                ids = self.head(self.embed(ids)).argmax(-1)
                drafted.append(ids)
            return drafted

    model, ids = Loop(), torch.tensor([1, 2])
    with torch.no_grad():
        rewritten, _ = rewrite(model, ids, vocabulary=vocabulary)
        compiled = torch.compile(model, backend="nanospec", options={"vocabulary": vocabulary, "inner": "eager"})
        drafted = torch.stack(compiled(ids))
    assert count_calls(rewritten)["shared_gathered_linear"] == 3
    assert set(drafted.flatten().tolist()) <= set(ACTIVE)


def test_a_weight_whose_number_of_rows_is_unknown_is_left_alone(vocabulary: DraftVocabulary) -> None:
    compiled = torch.compile(F.linear, backend="nanospec", options={"vocabulary": vocabulary, "inner": "eager"})
    hidden = torch.randn(2, D)
    with torch.no_grad():
        for num_rows in (40, 41, 42):
            weight = torch.randn(num_rows, D)
            torch.testing.assert_close(compiled(hidden, weight), F.linear(hidden, weight))


def test_a_weight_that_the_graph_writes_is_read_as_it_is_then(vocabulary: DraftVocabulary) -> None:
    def doubled(head: nn.Linear, h: Tensor) -> Tensor:
        torch._foreach_mul_([head.weight], 2.0)
        return head(h)

    model, hidden = Model(doubled), torch.randn(2, 3, D)
    with torch.no_grad():
        expected = F.linear(model.layer(hidden), 2 * model.head.weight)
        compiled = torch.compile(model, backend="nanospec", options={"vocabulary": vocabulary, "inner": "eager"})
        torch.testing.assert_close(compiled(hidden)[..., ACTIVE], expected[..., ACTIVE])


def test_a_vocabulary_that_the_graph_writes_is_refused(vocabulary: DraftVocabulary) -> None:
    def self_made(head: nn.Linear, h: Tensor) -> Tensor:
        logits = head(h)
        vocabulary.draft_ids.copy_(torch.arange(K))
        return logits

    with pytest.raises(NotImplementedError, match="vocabulary must be written outside of the compiled graph"):
        rewrite(Model(self_made), torch.randn(2, D), vocabulary=vocabulary)


def test_a_named_head_whose_weight_is_replaced_says_so(vocabulary: DraftVocabulary) -> None:
    model, hidden = Model(SPELLINGS["module"]), torch.randn(2, D)
    options = {"vocabulary": vocabulary, "inner": "eager", "head": model.head}
    compiled = torch.compile(model, backend="nanospec", options=options)
    with torch.no_grad():
        compiled(hidden)
        model.head.weight = nn.Parameter(torch.randn(V, D))
        with pytest.raises(RuntimeError, match="head must keep the weight that was compiled"):
            compiled(hidden)


def test_one_module_that_calls_its_head_for_target_and_draft_restricts_both(vocabulary: DraftVocabulary) -> None:
    """Nothing in such a graph tells the two apart: the target has to be compiled apart."""

    class Both(Model):
        def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
            return self.head(hidden), self.head(self.layer(hidden))

    with torch.no_grad():
        rewritten, _ = rewrite(Both(SPELLINGS["module"]), torch.randn(2, D), vocabulary=vocabulary)
    assert count_calls(rewritten)["shared_gathered_linear"] == 2


def test_a_projection_to_another_width_is_left_alone() -> None:
    model = Model(SPELLINGS["module"])
    with torch.no_grad():
        _, changed = rewrite(model, torch.randn(2, D), vocabulary=DraftVocabulary(V + 1, K))
    assert changed == []


def test_without_a_vocabulary_no_head_is_gathered() -> None:
    with torch.no_grad():
        _, changed = rewrite(Model(SPELLINGS["module"]), torch.randn(2, D))
    assert changed == []


def test_a_named_head_is_the_only_one(vocabulary: DraftVocabulary) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(D, V), nn.Linear(D, V)

        def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
            return self.first(hidden), self.second(hidden)

    model, hidden = Two(), torch.randn(2, D)
    with torch.no_grad():
        options = {"vocabulary": vocabulary, "inner": "eager", "head": model.second}
        first, second = torch.compile(model, backend="nanospec", options=options)(hidden)
    assert first.isfinite().all()
    assert second.isfinite().sum(-1).tolist() == [3, 3]


def test_a_weight_that_two_modules_use_is_left_alone_even_if_named(
    vocabulary: DraftVocabulary, caplog: pytest.LogCaptureFixture
) -> None:
    class Wrapper(nn.Module):
        def __init__(self, head: nn.Module) -> None:
            super().__init__()
            self.lm_head = head

        def forward(self, hidden: Tensor) -> Tensor:
            return self.lm_head(hidden)

    target = Wrapper(nn.Linear(D, V, bias=False))
    draft = Wrapper(target.lm_head)

    def both(hidden: Tensor) -> tuple[Tensor, Tensor]:
        return draft(hidden), target(hidden)

    with torch.no_grad():
        for head in (None, target.lm_head):
            _, changed = rewrite(both, torch.randn(2, D), vocabulary=vocabulary, head=head)
            assert changed == []
    assert "several modules of this graph use it" in caplog.text


def test_rows_are_packed_for_frozen_weights_only(vocabulary: DraftVocabulary) -> None:
    model, hidden = Model(SPELLINGS["module"]), torch.randn(2, D)
    trained, _ = rewrite(model, hidden, vocabulary=vocabulary)
    assert len(require_context(trained).static_inputs) == 2, "a weight in training is read anew"
    with torch.no_grad():
        frozen, _ = rewrite(model, hidden, vocabulary=vocabulary)
    assert len(require_context(frozen).static_inputs) == 3


def test_user_mutations_survive(vocabulary: DraftVocabulary) -> None:
    class Counting(Model):
        def __init__(self) -> None:
            super().__init__(SPELLINGS["module"])
            self.steps = nn.Buffer(torch.zeros((), dtype=torch.int64))

        def forward(self, hidden: Tensor) -> Tensor:
            self.steps.add_(1)
            return super().forward(hidden)

    model = Counting()
    compiled = torch.compile(model, backend="nanospec", options={"vocabulary": vocabulary, "inner": "aot_eager"})
    with torch.no_grad():
        for _ in range(3):
            compiled(torch.randn(2, D))
    assert model.steps == 3


def test_a_second_run_changes_nothing(vocabulary: DraftVocabulary) -> None:
    with torch.no_grad():
        rewritten, _ = rewrite(
            Model(SPELLINGS["soft cap"]), torch.randn(2, D), vocabulary=vocabulary, passes=(gather_output_head,)
        )
    calls = count_calls(rewritten)
    assert not gather_output_head(rewritten)
    assert count_calls(rewritten) == calls


def test_a_draft_is_trained_through_the_gathered_head(vocabulary: DraftVocabulary) -> None:
    model = Model(SPELLINGS["module"], bias=True).double()
    hidden = torch.randn(2, 3, D, dtype=torch.float64)
    model(hidden)[..., ACTIVE].square().sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for inner in ("eager", "aot_eager"):
        compiled = torch.compile(model, backend="nanospec", options={"vocabulary": vocabulary, "inner": inner})
        logits = compiled(hidden)
        torch.where(logits.isfinite(), logits, 0.0).square().sum().backward()
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
        model.zero_grad()
