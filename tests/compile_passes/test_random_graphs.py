"""Compiled equals eager on the active ids, and what is outside is -inf: over random small graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from compile_passes.backend import nanospec as nanospec_backend
from nanospec import DraftVocabulary

V, D, K = 37, 6, 11
# Hidden states and weights are small integers: every logit is exact in every dtype, and many are equal.
# Squashed and normalised values are rounded differently over K and over V columns: by a few units in the last place.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-5, torch.float16: 2**-8}

SPELLINGS: dict[str, Callable[[nn.Linear, Tensor], Tensor]] = {
    "module": lambda head, h: head(h),
    "F.linear": lambda head, h: F.linear(h, head.weight, bias=head.bias),
    "@ t()": lambda head, h: h @ head.weight.t(),
    "@ T": lambda head, h: h @ head.weight.T,
    "matmul": lambda head, h: torch.matmul(h, head.weight.transpose(-2, -1)),
    "mm": lambda head, h: torch.mm(h.reshape(-1, D), head.weight.t()),
    "addmm": lambda head, h: torch.addmm(h.new_ones(V), h.reshape(-1, D), head.weight.t()),
}
LINKS: dict[str, Callable[[Tensor], Tensor]] = {
    "float": lambda x: x.float(),
    "double": lambda x: x.to(torch.float64),
    "half scale": lambda x: x * 0.5,
    "scale from the left": lambda x: 2 * x,
    "cap": lambda x: torch.tanh(x / 30) * 30,
    "last row": lambda x: x[..., -1:, :] if x.dim() > 1 else x,
    "flat rows": lambda x: x.reshape(-1, V),
    "new row": lambda x: x.unsqueeze(0),
    "copy": lambda x: x.contiguous(),
}


class Consumer(NamedTuple):
    """run: logits -> outputs; wide: the scores that ids stand for, in the same order as pairs (values, ids)."""

    run: Callable[[Tensor], tuple[Tensor, ...]]
    scores: Callable[[Tensor], Tensor] | None = None


CONSUMERS = {
    "none": Consumer(lambda x: (x,)),
    "argmax": Consumer(lambda x: (x.amax(-1, keepdim=True), x.argmax(-1, keepdim=True)), lambda x: x),
    "max": Consumer(lambda x: tuple(x.max(-1, keepdim=True)), lambda x: x),
    "topk": Consumer(lambda x: tuple(x.topk(3)), lambda x: x),
    "softmax": Consumer(lambda x: (x.softmax(-1),)),
    "log_softmax": Consumer(lambda x: (F.log_softmax(x, dim=-1, dtype=torch.float32),)),
    "softmax topk": Consumer(lambda x: tuple(torch.topk(x.softmax(-1), 2)), lambda x: x.softmax(-1)),
    "log_softmax topk": Consumer(lambda x: tuple(x.log_softmax(-1).topk(3, dim=-1)), lambda x: x.log_softmax(-1)),
    "log_softmax max": Consumer(lambda x: tuple(x.log_softmax(-1).max(-1, keepdim=True)), lambda x: x.log_softmax(-1)),
    "masked fill": Consumer(lambda x: (x.masked_fill(x < 0, 0.0),)),
    "several": Consumer(lambda x: (x, x.argmax(-1), x.softmax(-1))),
}


class Case(NamedTuple):
    spelling: str
    bias: bool
    dtype: torch.dtype
    leading: tuple[int, ...]
    links: list[str]
    consumer: str
    inner: str
    vocabularies: list[list[int]]
    seed: int


CASES = st.builds(
    Case,
    spelling=st.sampled_from(list(SPELLINGS)),
    bias=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCE)),
    leading=st.lists(st.integers(1, 3), max_size=3).map(tuple),
    links=st.lists(st.sampled_from(list(LINKS)), max_size=3),
    consumer=st.sampled_from(list(CONSUMERS)),
    inner=st.sampled_from(["eager", "aot_eager"]),
    vocabularies=st.lists(st.lists(st.integers(0, V - 1), max_size=K), min_size=2, max_size=3),
    seed=st.integers(0, 2**16),
)


class Model(nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case, self.head = case, nn.Linear(D, V, bias=case.bias)
        for parameter in self.head.parameters():
            nn.init.constant_(parameter, 0).random_(-2, 3)

    def logits(self, hidden: Tensor) -> Tensor:
        logits = SPELLINGS[self.case.spelling](self.head, hidden)
        for name in self.case.links:
            logits = LINKS[name](logits)
        return logits

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        return CONSUMERS[self.case.consumer].run(self.logits(hidden))


@torch.no_grad()
@settings(deadline=None, max_examples=120)
@given(case=CASES)
def test_compiled_equals_eager_on_active_ids_and_is_nothing_elsewhere(case: Case) -> None:
    _check(case)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_through_inductor(dtype: torch.dtype) -> None:
    ids = [[5, 5, 0], [], list(range(K))]
    _check(Case("module", True, dtype, (2, 3), ["cap", "float"], "log_softmax topk", "inductor", ids, 1))
    _check(Case("@ t()", False, dtype, (2,), [], "several", "inductor", ids, 2))


def _check(case: Case) -> None:
    torch.manual_seed(case.seed)
    torch._dynamo.reset()
    model = Model(case).to(case.dtype)
    vocabulary = DraftVocabulary(V, K)
    num_compilations = 0

    def counting(graph_module, inputs):
        nonlocal num_compilations
        num_compilations += 1
        return nanospec_backend(graph_module, inputs, options={"vocabulary": vocabulary, "inner": case.inner})

    compiled = torch.compile(model, backend=counting)
    for ids in case.vocabularies:
        vocabulary.update(ids)
        hidden = torch.randint(-2, 3, (*case.leading, D)).to(case.dtype)
        inactive = torch.ones(V, dtype=torch.bool)
        inactive[ids] = False
        _compare(case, compiled(hidden), model.logits(hidden).masked_fill(inactive, -torch.inf), len(set(ids)))
    assert num_compilations == 1, "updates of the vocabulary must not recompile"


def _compare(case: Case, outputs: tuple[Tensor, ...], logits: Tensor, num_active: int) -> None:
    consumer = CONSUMERS[case.consumer]
    tolerance = max(TOLERANCE[case.dtype], TOLERANCE[outputs[0].dtype])
    if consumer.scores is None:
        for output, expected in zip(outputs, consumer.run(logits), strict=True):
            torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
        return
    values, ids = outputs
    scores = consumer.scores(logits)
    stable = scores.sort(dim=-1, descending=True, stable=True)
    expected, expected_ids = stable.values[..., : values.shape[-1]], stable.indices[..., : values.shape[-1]]
    torch.testing.assert_close(values, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
    active = slice(0, min(num_active, values.shape[-1]))
    scores_of_ids = scores.gather(-1, ids[..., active])
    torch.testing.assert_close(scores_of_ids, expected[..., active], rtol=tolerance, atol=tolerance, equal_nan=True)
    if "cap" not in case.links and "softmax" not in case.consumer:
        assert torch.equal(ids[..., active], expected_ids[..., active]), "ties must go to the smallest id"
