"""What a compiled graph reads of the vocabularies: buffers that stay where they are, rows only for their own head."""

from __future__ import annotations

import torch

from nanospec.locality_tracker import LocalityTracker
from nanospec.vocab.in_context import InContextVocab
from nanospec.vocab.same_head import is_same_head
from nanospec.vocab.static import StaticVocab

HEAD = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


def test_a_detached_head_is_the_head_and_a_copy_is_not():
    assert is_same_head(HEAD.detach(), HEAD)
    assert not is_same_head(HEAD.clone(), HEAD)
    assert not is_same_head(HEAD[:10], HEAD)
    assert not is_same_head(HEAD.view(torch.int32), HEAD)


def test_views_of_an_in_context_vocabulary_follow_it_in_place():
    vocab = InContextVocab(HEAD, capacity=4)
    views = vocab.vocabulary_views()
    rows = views.pack(HEAD)
    assert views.vocab_size == 20
    assert int(views.count) == 0
    vocab.observe(torch.tensor([[7, 3, 7, 9]]))
    count = int(views.count)
    assert sorted(views.draft_ids[:count].tolist()) == [3, 7, 9]
    assert torch.equal(rows[:count], HEAD[views.draft_ids[:count]])
    assert rows.shape == (4, 3)
    assert views.draft_ids[count:].eq(views.draft_ids[0]).all()
    vocab.reset()
    assert int(views.count) == 0


def test_rows_are_given_for_the_own_head_only():
    for vocab in (InContextVocab(HEAD, capacity=4), StaticVocab(HEAD, torch.tensor([5, 2]))):
        assert vocab.vocabulary_views().pack(HEAD.detach()) is not None
        assert vocab.vocabulary_views().pack(HEAD.clone()) is None
    assert InContextVocab(HEAD, capacity=4, packed=False).vocabulary_views().pack(HEAD) is None


def test_views_of_a_static_vocabulary_are_its_list():
    views = StaticVocab(HEAD, torch.tensor([5, 2])).vocabulary_views()
    assert (views.vocab_size, views.draft_ids.tolist(), views.count.tolist()) == (20, [5, 2], [2])
    assert torch.equal(views.pack(HEAD), HEAD[[5, 2]])


def test_a_tracker_lends_its_buffers_and_leaves_the_rows_in_the_head():
    tracker = LocalityTracker(20, 4)
    views = tracker.vocabulary_views()
    tracker.observe(torch.tensor([[1, 2]]))
    assert sorted(views.draft_ids[: int(views.count)].tolist()) == [1, 2]
    assert views.pack(HEAD) is None
