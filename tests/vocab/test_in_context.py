"""The in-context policy: its rows follow its ids, packed equals indexed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec.gathered_head import GatheredHead
from nanospec.vocab.in_context import InContextVocab

VOCAB_SIZE, HIDDEN_SIZE = 13, 5
# float64 sums of 5 products of order 1: only the order of summation differs.
ATOL = 1e-12


@given(
    data=st.data(),
    capacity=st.integers(1, VOCAB_SIZE),
    batch_size=st.integers(1, 3),
    num_steps=st.integers(1, 4),
    num_pinned=st.integers(0, VOCAB_SIZE),
)
@settings(max_examples=60)
def test_rows_follow_the_ids_and_both_modes_agree(data, capacity, batch_size, num_steps, num_pinned) -> None:
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 2**16), label="seed"))
    weight = torch.randn(VOCAB_SIZE, HIDDEN_SIZE, dtype=torch.float64, generator=draw)
    pinned_ids = torch.randperm(VOCAB_SIZE, generator=draw)[: min(num_pinned, capacity)]
    packed = InContextVocab(weight, capacity, batch_size, pinned_ids=pinned_ids)
    indexed = InContextVocab(weight, capacity, batch_size, packed=False, pinned_ids=pinned_ids)
    head = GatheredHead(weight)
    for _ in range(num_steps):
        if data.draw(st.booleans(), label="reset"):
            mask = torch.rand(batch_size, generator=draw) < 0.5
            packed.reset(mask)
            indexed.reset(mask)
        ids = torch.randint(-1, VOCAB_SIZE, (batch_size, data.draw(st.integers(0, 20), label="n")), generator=draw)
        packed.observe(ids)
        indexed.observe(ids)

        vocab = packed.select()
        assert vocab.rows is not None
        for row, count in enumerate(vocab.count.tolist()):
            assert torch.equal(vocab.rows[row, :count], weight[vocab.draft_ids[row, :count]])
            active = vocab.draft_ids[row, :count].tolist()
            assert set(pinned_ids.tolist()) <= set(active)
            all_ids = torch.arange(VOCAB_SIZE).expand(batch_size, -1)
            expected = [active.index(token) if token in active else -1 for token in range(VOCAB_SIZE)]
            assert packed.columns(all_ids)[row].tolist() == expected
        width = max(1, int(vocab.count.max()))
        hidden = torch.randn(batch_size, 3, HIDDEN_SIZE, dtype=torch.float64, generator=draw)
        logits = head(hidden, packed.select(width))
        assert logits.shape == (batch_size, 3, width)
        torch.testing.assert_close(logits, head(hidden, indexed.select(width)), rtol=0, atol=ATOL)
        torch.testing.assert_close(logits, head(hidden, vocab)[:, :, :width], rtol=0, atol=ATOL)


def test_select_returns_views_with_fixed_addresses() -> None:
    vocab = InContextVocab(torch.randn(VOCAB_SIZE, HIDDEN_SIZE), 6)
    before = vocab.select(4)
    vocab.observe(torch.tensor([[3, 1, 2]]))
    after = vocab.select(4)
    assert before.draft_ids.shape == (1, 4)
    assert before.rows is not None
    assert after.rows is not None
    assert before.draft_ids.data_ptr() == after.draft_ids.data_ptr() == vocab.select().draft_ids.data_ptr()
    assert before.rows.data_ptr() == after.rows.data_ptr() == vocab.select().rows.data_ptr()
    assert before.count.tolist() == [3]


def test_a_request_leaves_nothing_behind() -> None:
    weight = torch.randn(VOCAB_SIZE, HIDDEN_SIZE)
    used, fresh = InContextVocab(weight, 6), InContextVocab(weight, 6)
    for _ in range(20):
        used.observe(torch.randint(VOCAB_SIZE, (1, 9)))
    used.reset()
    ids = torch.tensor([[4, 4, 1, 9]])
    used.observe(ids)
    fresh.observe(ids)
    assert torch.equal(used.select().draft_ids, fresh.select().draft_ids)
    assert used.select().count.tolist() == fresh.select().count.tolist() == [3]
    assert torch.equal(used.select(3).rows, fresh.select(3).rows)


def test_the_head_is_not_registered() -> None:
    weight = torch.nn.Parameter(torch.randn(VOCAB_SIZE, HIDDEN_SIZE))
    vocab = InContextVocab(weight, 6)
    assert (vocab.name, vocab.observes) == ("in-context", True)
    assert not vocab.state_dict()
    assert not list(vocab.parameters())
    assert vocab.head_weight.data_ptr() == weight.data_ptr()
    assert not vocab.head_weight.requires_grad


def test_bad_sizes_are_refused() -> None:
    weight = torch.zeros(VOCAB_SIZE, HIDDEN_SIZE)
    with pytest.raises(ValueError, match="capacity must be between 1 and vocab_size 13, got 14"):
        InContextVocab(weight, 14)
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        InContextVocab(weight, 6).select(0)
