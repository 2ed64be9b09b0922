from __future__ import annotations

import pytest
import torch

from nanospec.decode import SpeculativeDecoder
from nanospec.training.evaluate_pair import accept_length_per_task
from nanospec.tree_shape import TreeShape
from tests.tiny_pair import VOCAB_SIZE, tiny_drafter, tiny_target

TREE = TreeShape(3, 3, 8)


def test_accept_lengths_are_means_by_category_of_the_decoders_own_first_steps():
    target = tiny_target(0)
    decoder = SpeculativeDecoder(target, tiny_drafter(target, 1), "full", TREE, num_top=2, draft_temperature=1.0)
    generator = torch.Generator().manual_seed(3)
    contexts = [(name, torch.randint(VOCAB_SIZE, (1, 12), generator=generator)) for name in ("chat", "code", "chat")]
    figures = accept_length_per_task(decoder, contexts, ["full", "in-context"])
    for policy in ("full", "in-context"):
        lengths = {"chat": [], "code": []}
        for name, context in contexts:
            loop, _ = decoder.with_vocab(policy).speculate(context, TREE, TREE.depth + 2)
            steps = loop.steps()
            next(steps)
            lengths[name].append(len(next(steps)))
        assert figures[policy]["code"] == lengths["code"][0]
        assert figures[policy]["chat"] == sum(lengths["chat"]) / 2
        assert figures[policy]["all"] == pytest.approx(sum(map(sum, lengths.values())) / 3)
    assert figures["full"]["rows"] == VOCAB_SIZE > figures["in-context"]["rows"]
