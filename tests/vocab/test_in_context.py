"""The in-context policy: its rows follow its ids, packed equals indexed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec import SpeculativeDecoder
from nanospec.gathered_head import GatheredHead
from nanospec.vocab.in_context import InContextVocab
from tests.tiny_pair import VOCAB_SIZE as PAIR_SIZE
from tests.tiny_pair import tiny_drafter, tiny_target

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
        most = max(1, int(vocab.count.max()))
        width = min(most + data.draw(st.integers(0, 3), label="columns behind"), capacity)
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


@pytest.mark.parametrize("packed", [True, False])
def test_ids_of_the_last_request_stay_only_where_the_caller_says_so(packed) -> None:
    weight = torch.randn(VOCAB_SIZE, HIDDEN_SIZE)
    isolated, warm = (InContextVocab(weight, 4, packed=packed, keep_between_requests=n) for n in (0, 2))
    for vocab in (isolated, warm):
        vocab.observe(torch.tensor([[1, 2, 3, 5]]))
        vocab.reset()
    assert int(isolated.select().count) == 0
    chosen = warm.select(2)
    assert (set(chosen.draft_ids[0].tolist()), int(chosen.count)) == ({3, 5}, 2)
    assert not warm.was_seen(torch.tensor([[3, 5]])).any()
    if packed:
        assert torch.equal(chosen.rows[0], weight[chosen.draft_ids[0]])
    warm.observe(torch.tensor([[6, 7, 8]]))
    assert set(warm.select().draft_ids[0].tolist()) == {5, 6, 7, 8}, "what was kept is the oldest"


def test_only_the_sequence_that_is_reset_starts_warm() -> None:
    vocab = InContextVocab(torch.randn(VOCAB_SIZE, HIDDEN_SIZE), 4, 2, keep_between_requests=1)
    vocab.observe(torch.tensor([[1, 2], [3, 4]]))
    vocab.reset(torch.tensor([0]))
    assert vocab.select().count.tolist() == [1, 2]
    assert vocab.select().draft_ids[:, :2].sort().values.tolist() == [[2, 2], [3, 4]]


def test_a_negative_number_of_kept_ids_is_refused() -> None:
    with pytest.raises(ValueError, match="keep_between_requests must be at least 0, got -1"):
        InContextVocab(torch.zeros(VOCAB_SIZE, HIDDEN_SIZE), 6, keep_between_requests=-1)


@given(
    prompts=st.lists(st.lists(st.integers(0, PAIR_SIZE - 1), min_size=1, max_size=8), min_size=2, max_size=3),
    capacity=st.integers(3, 20),
    num_kept=st.integers(1, 30),
)
@settings(max_examples=8)
def test_whatever_stays_of_the_last_request_the_tokens_are_the_targets_own(prompts, capacity, num_kept) -> None:
    target = tiny_target(1)
    vocab = InContextVocab(target.head_weight, capacity, keep_between_requests=num_kept)
    decoder = SpeculativeDecoder(target, tiny_drafter(target, 2, std=0.02), vocab, (3, 2, 6))
    for prompt in prompts:
        expected = decoder.generate_autoregressive(prompt, max_new_tokens=12).token_ids
        assert decoder.generate(prompt, max_new_tokens=12).token_ids == expected
