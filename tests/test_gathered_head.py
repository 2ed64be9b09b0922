"""The head over a draft vocabulary, packed and indexed, against the plain product."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nanospec.gathered_head import GatheredHead
from nanospec.ops.gathered_linear_reference import gathered_linear_reference
from nanospec.records import DraftVocab
from nanospec.vocab.full import FullVocab

# float64 sums of at most 7 products of order 1: only the order of summation differs.
ATOL = 1e-12


@given(
    data=st.data(),
    batch_size=st.integers(1, 3),
    num_tokens=st.integers(1, 5),
    hidden_size=st.integers(1, 7),
    vocab_size=st.integers(1, 19),
    is_shared=st.booleans(),
    has_bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60)
def test_packed_and_indexed_match_the_reference(
    data, batch_size, num_tokens, hidden_size, vocab_size, is_shared, has_bias, seed
) -> None:
    draw = torch.Generator().manual_seed(seed)
    num_vocabs = 1 if is_shared else batch_size
    capacity = data.draw(st.sampled_from((1, vocab_size)) | st.integers(1, vocab_size), label="capacity")
    count = torch.tensor(
        data.draw(st.lists(st.integers(0, capacity), min_size=num_vocabs, max_size=num_vocabs), label="count"),
        dtype=torch.int32,
    )
    hidden = torch.randn(batch_size, num_tokens, hidden_size, dtype=torch.float64, generator=draw)
    weight = torch.randn(vocab_size, hidden_size, dtype=torch.float64, generator=draw)
    bias = torch.randn(vocab_size, dtype=torch.float64, generator=draw) if has_bias else None
    ids = torch.stack([torch.randperm(vocab_size, generator=draw)[:capacity] for _ in range(num_vocabs)])
    is_unused = torch.arange(capacity) >= count[:, None]
    rows = weight[ids].masked_fill(is_unused[:, :, None], torch.nan)  # what was never written must not show

    expected = gathered_linear_reference(hidden, weight, ids, bias).masked_fill(is_unused[:, None], float("-inf"))
    head = GatheredHead(weight, bias)
    for vocab in (DraftVocab(ids, count, None), DraftVocab(ids, count, rows)):
        torch.testing.assert_close(head(hidden, vocab), expected, rtol=0, atol=ATOL)


def test_full_vocabulary_gives_the_plain_head() -> None:
    linear = nn.Linear(4, 11, dtype=torch.float64)
    hidden = torch.randn(2, 3, 4, dtype=torch.float64)
    logits = GatheredHead(linear.weight, linear.bias)(hidden, FullVocab(linear.weight).select())
    torch.testing.assert_close(logits, linear(hidden), rtol=0, atol=ATOL)


def test_logits_have_the_dtype_of_hidden() -> None:
    weight = torch.randn(9, 4, dtype=torch.bfloat16)
    vocab = DraftVocab(torch.tensor([[3, 5]]), torch.tensor([1], dtype=torch.int32), None)
    logits = GatheredHead(weight)(torch.randn(1, 2, 4, dtype=torch.bfloat16), vocab)
    assert logits.dtype == torch.bfloat16


def test_the_weight_is_a_reference_that_is_not_registered() -> None:
    linear = nn.Linear(4, 11)
    head = GatheredHead(linear.weight, linear.bias)
    assert not list(head.parameters())
    assert not head.state_dict()
    assert head.weight.data_ptr() == linear.weight.data_ptr()
    assert not head.weight.requires_grad


def test_what_does_not_fit_is_refused() -> None:
    weight, hidden = torch.zeros(9, 4), torch.zeros(2, 3, 4)
    ids, count = torch.zeros(1, 5, dtype=torch.int64), torch.tensor([5], dtype=torch.int32)
    head = GatheredHead(weight)
    with pytest.raises(ValueError, match=r"weight must be \[V, D\]"):
        GatheredHead(weight[0])
    with pytest.raises(ValueError, match=r"bias must be \[9\]"):
        GatheredHead(weight, torch.zeros(8))
    with pytest.raises(ValueError, match=r"hidden must be \[B, n, D\].* got \(2, 3, 4\), \(1, 5\), \(1, 6, 4\)"):
        head(hidden, DraftVocab(ids, count, torch.zeros(1, 6, 4)))
    with pytest.raises(ValueError, match="rows must serve 1 or 2 sequences, got 3"):
        head(hidden, DraftVocab(ids.expand(3, -1), count, torch.zeros(3, 5, 4)))
    with pytest.raises(TypeError, match="hidden must have the head's dtype torch.float32, got torch.float64"):
        head(hidden.double(), DraftVocab(ids, count, torch.zeros(1, 5, 4)))
    with pytest.raises(ValueError, match=r"x must be \[B, n, D\]"):
        head(hidden[0], DraftVocab(ids, count, None))


@given(st.integers(1, 9), st.integers(0, 9), st.booleans(), st.booleans(), st.integers(0, 2**16))
def test_best_are_the_first_of_the_sorted_log_softmax(capacity, num_active, is_packed, has_bias, seed):
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(19, 5, generator=draw, dtype=torch.float64)
    head = GatheredHead(weight, torch.randn(19, generator=draw, dtype=torch.float64) if has_bias else None)
    ids = torch.randperm(19, generator=draw)[:capacity][None]
    count = torch.tensor([min(num_active, capacity)], dtype=torch.int32)
    vocab = DraftVocab(ids, count, weight[ids] if is_packed else None)
    hidden = torch.randn(1, 3, 5, generator=draw, dtype=torch.float64)
    num_best = min(4, capacity)

    best_ids, log_prob = head.best(hidden, vocab, num_best)
    expected = head(hidden, vocab).log_softmax(-1).sort(-1, descending=True)
    is_active = expected.values[..., :num_best].isfinite()
    assert torch.equal(log_prob.isfinite(), is_active)
    torch.testing.assert_close(log_prob[is_active], expected.values[..., :num_best][is_active].float())
    assert torch.equal(best_ids[is_active], ids[0][expected.indices[..., :num_best]][is_active])
