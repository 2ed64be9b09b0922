"""The head over each request's own ids: the full head's logits there, and nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec.integrations.vllm.active_head import ActiveHead, HeadShard, best_ids, over_vocabulary
from nanospec.integrations.vllm.request_rows import RequestRows

VOCAB_SIZE, HIDDEN, MAX_REQUESTS = 200, 8, 4
D2T_IDS = torch.arange(3, VOCAB_SIZE, 2)
# A product over gathered rows may add in another order than one over all rows: some units of float64.
TOLERANCE = 1e-12


def head_over(texts: list[list[int]], capacity: int = 96, target_ids=None) -> ActiveHead:
    rows = RequestRows(VOCAB_SIZE, capacity, MAX_REQUESTS, target_ids=target_ids)
    for place, text in enumerate(texts):
        rows.admit(str(place), text)
    head = ActiveHead(rows)
    head.publish([str(place) for place in range(len(texts))])
    return head


def weight_and_hidden(num_hidden: int, num_rows: int = VOCAB_SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_hidden)
    weight = torch.randn(num_rows, HIDDEN, dtype=torch.float64, generator=generator)
    return weight, torch.randn(num_hidden, HIDDEN, dtype=torch.float64, generator=generator)


texts = st.lists(st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=120), min_size=1, max_size=MAX_REQUESTS)


@settings(max_examples=30)
@given(texts, st.booleans(), st.integers(1, 3))
def test_logits_are_the_full_heads_on_the_ids_of_the_request_and_minus_infinity_elsewhere(
    texts, is_reduced, per_request
):
    target_ids = D2T_IDS if is_reduced else None
    sayable = set((torch.arange(VOCAB_SIZE) if target_ids is None else target_ids).tolist())
    if any(not sayable & set(text) for text in texts):
        return
    head = head_over(texts, VOCAB_SIZE, target_ids)
    weight, hidden = weight_and_hidden(len(texts) * per_request, len(sayable))
    full = torch.full((len(hidden), VOCAB_SIZE), -torch.inf, dtype=torch.float64)
    full[:, sorted(sayable)] = hidden @ weight.T
    for row, text in enumerate(text for text in texts for _ in range(per_request)):
        full[row, [i for i in range(VOCAB_SIZE) if i not in text]] = -torch.inf
    logits, ids = head.scores(hidden, weight)
    torch.testing.assert_close(over_vocabulary(logits, ids, VOCAB_SIZE), full, rtol=0, atol=TOLERANCE)
    assert torch.equal(best_ids(logits, ids), full.argmax(1))


def test_a_head_in_two_processes_gives_the_same_logits():
    head = head_over([[0, 150, 99, 100], [7]])
    weight, hidden = weight_and_hidden(2)
    parts: list[torch.Tensor] = []
    whole, ids = head.scores(hidden, weight)
    for first, behind in ((0, 100), (100, VOCAB_SIZE)):
        head.scores(hidden, weight[first:behind], HeadShard(first, behind, lambda part: parts.append(part) or part))
    shard = HeadShard(0, 100, lambda part: parts[0] + parts[1])
    logits, sharded_ids = head.scores(hidden, weight[:100], shard)
    assert torch.equal(sharded_ids, ids)
    torch.testing.assert_close(logits, whole, rtol=0, atol=TOLERANCE)


def test_nothing_is_drafted_from_before_requests_are_published():
    head = ActiveHead(RequestRows(VOCAB_SIZE, 8, MAX_REQUESTS))
    assert head.is_full
    head.publish([])
    assert head.is_full


def test_a_request_that_can_say_nothing_takes_the_full_head_for_its_batch():
    rows = RequestRows(VOCAB_SIZE, 8, MAX_REQUESTS, target_ids=D2T_IDS)
    rows.admit("a", [3])
    rows.admit("b", [0, 2])  # even ids, which the draft lacks
    head = ActiveHead(rows)
    head.publish(["a", "b"])
    assert head.is_full
    head.publish(["a"])
    assert not head.is_full


def test_buffers_keep_their_addresses():
    head = head_over([[1, 2, 3]])
    addresses = [buffer.data_ptr() for buffer in (head.positions, head.ids, head.count)]
    head.rows.admit("another", [9, 8])
    head.publish(["another", "0"])
    assert [buffer.data_ptr() for buffer in (head.positions, head.ids, head.count)] == addresses
    assert set(head.ids[0, :2].tolist()) == {8, 9}


def test_every_row_of_the_buffers_can_be_scored_before_anything_is_published():
    """As a captured graph does, of a batch that is padded to its shape."""
    head = ActiveHead(RequestRows(VOCAB_SIZE, 8, MAX_REQUESTS, target_ids=D2T_IDS))
    head.read_buffers()
    weight, hidden = weight_and_hidden(MAX_REQUESTS, D2T_IDS.shape[0])
    logits, ids = head.scores(hidden, weight)
    assert logits.isfinite().all()
    assert torch.isin(ids, D2T_IDS).all()


def test_rows_copied_for_one_draft_are_not_those_of_the_next():
    head = head_over([[1, 2]])
    weight, hidden = weight_and_hidden(1)
    head.scores(hidden, weight)
    head.rows.observe(["0"], torch.tensor([[50]]), torch.empty(1, 0, 0))
    head.publish(["0"])
    logits, ids = head.scores(hidden, weight)
    expected = (hidden @ weight.T).gather(1, ids)
    torch.testing.assert_close(logits, expected, rtol=0, atol=TOLERANCE)
    assert 50 in ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_have_the_dtype_of_the_hidden_states(dtype):
    head = head_over([[1, 2]])
    weight, hidden = weight_and_hidden(1)
    assert head.scores(hidden.to(dtype), weight.to(dtype))[0].dtype == dtype
