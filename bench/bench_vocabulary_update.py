"""Upkeep of the in-context vocabulary: fixed-shape tensor work, the same with rows copied, a plain Python set."""

from __future__ import annotations

import itertools

import pytest
import torch

from bench.shapes import NUM_ROWS, Shape
from nanospec.locality_tracker import LocalityTracker
from nanospec.ops.vocabulary_update_reference import LruVocabulary
from nanospec.vocab.in_context import InContextVocab

IDS_PER_NODE = 4  # the node's own id and the target's three best after it
NUM_STEPS = 64  # distinct steps that the timing cycles through


@pytest.mark.parametrize("num_rows", NUM_ROWS)
def test_time_of_vocabulary_update(
    shape: Shape, num_rows: int, head_weight: torch.Tensor, device: torch.device, compare
) -> None:
    torch.manual_seed(0)
    # Squared uniform numbers: small ids come often, so that most of a step is seen already, as in text.
    share = torch.rand(NUM_STEPS, 1, num_rows * IDS_PER_NODE).square()
    steps = list((share * shape.vocab_size / 4).long().to(device))
    python = LruVocabulary(shape.vocab_size, shape.draft_size)
    tracker = LocalityTracker(shape.vocab_size, shape.draft_size, device=device)
    packed = InContextVocab(head_weight, shape.draft_size)

    for ids in steps:
        python.observe(ids[0].tolist())
        tracker.observe(ids)
        packed.observe(ids)
    for seen in (tracker, packed.tracker):
        assert set(seen.draft_ids[0, : int(seen.count[0])].tolist()) == python.active_ids()
    vocab = packed.select(width=int(packed.tracker.count[0]))
    assert vocab.rows is not None
    assert torch.equal(vocab.rows, head_weight[vocab.draft_ids])

    streams = [itertools.cycle(steps) for _ in range(3)]
    compare(
        f"update, {num_rows * IDS_PER_NODE} ids, K = {shape.draft_size}",
        {
            "tracker": lambda: tracker.observe(next(streams[0])),
            "tracker and packed rows": lambda: packed.observe(next(streams[1])),
            "python set, ids read back": lambda: python.observe(next(streams[2])[0].tolist()),
        },
    )
