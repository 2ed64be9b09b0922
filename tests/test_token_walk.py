"""The walk whose tokens a caller chooses: the verifier's for the same rule, each position asked once, in order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanospec.acceptance import accept_greedy, accept_sampled
from nanospec.records import DraftTree
from nanospec.sampling import SamplingParams, pick_next
from nanospec.token_walk import accept_chosen
from nanospec.tree_layout import tree_layout

VOCAB_SIZE = 6
MAX_DEPTH = 3


class Chooser:
    """Picks as `params` and the numbers u say, remembers what it was asked, and is done after `limit` tokens."""

    def __init__(self, params: SamplingParams, u: torch.Tensor, limit: int = 100) -> None:
        self.params, self.u, self.limit = params, u, limit
        self.asked: list[torch.Tensor] = []

    @property
    def is_done(self) -> bool:
        return len(self.asked) >= self.limit

    def choose(self, logits: torch.Tensor) -> int:
        self.asked.append(logits)
        return int(pick_next(logits, self.params, self.u[len(self.asked) - 1 :][:1]))


@st.composite
def trees(draw) -> DraftTree:
    """Siblings with distinct ids, some nodes unused, no node deeper than MAX_DEPTH."""
    token_ids, parents, depths = [0], [0], [0]
    for _ in range(draw(st.integers(0, 8))):
        parent = draw(st.integers(0, len(token_ids) - 1))
        token = draw(st.integers(-1, VOCAB_SIZE - 1))
        taken = {(p, t) for p, t in zip(parents, token_ids, strict=True)}
        if depths[parent] < MAX_DEPTH and token_ids[parent] >= 0 and (parent, token) not in taken:
            token_ids.append(token)
            parents.append(parent)
            depths.append(depths[parent] + 1)
    parent_pos = torch.tensor([parents])
    ancestors, depth = tree_layout(parent_pos, MAX_DEPTH)
    return DraftTree(torch.tensor([token_ids]), parent_pos, depth, torch.zeros(1, len(parents)), ancestors)


@given(tree=trees(), seed=st.integers(0, 1000), temperature=st.sampled_from((0.0, 1.0)))
def test_the_walk_of_a_rule_is_that_of_the_verifier(tree, seed, temperature):
    generator = torch.Generator().manual_seed(seed)
    num_nodes = tree.token_ids.shape[1]
    logits = torch.randn(1, num_nodes, VOCAB_SIZE, generator=generator, dtype=torch.float64)
    u = torch.rand(1, MAX_DEPTH + 1, generator=generator, dtype=torch.float64)
    params = SamplingParams(temperature=temperature)
    if params.is_greedy:
        expected = accept_greedy(tree, logits.argmax(-1), MAX_DEPTH)
    else:
        expected = accept_sampled(tree, logits, params, u, None, MAX_DEPTH)
    chooser = Chooser(params, u[0])
    verdict = accept_chosen(tree, logits, chooser, MAX_DEPTH)
    for field, wanted in zip(verdict, expected, strict=True):
        assert field.dtype == wanted.dtype
        assert field.tolist() == wanted.tolist()
    path = verdict.accepted_pos[0, : int(verdict.num_accepted)]
    assert torch.equal(torch.cat(chooser.asked), logits[0, path])  # every position once, in order, and no other


def chain(*token_ids: int) -> DraftTree:
    parent_pos = torch.tensor([[0, *range(len(token_ids) - 1)]])
    ancestors, depth = tree_layout(parent_pos, MAX_DEPTH)
    return DraftTree(torch.tensor([token_ids]), parent_pos, depth, torch.zeros(1, len(token_ids)), ancestors)


def test_the_walk_ends_with_the_output():
    tree, logits = chain(0, 1, 2, 3), torch.eye(VOCAB_SIZE)[None, [1, 2, 3, 4]]  # the rule says 1, 2, 3, 4
    whole = accept_chosen(tree, logits, Chooser(SamplingParams(), torch.zeros(4)), MAX_DEPTH)
    cut = accept_chosen(tree, logits, Chooser(SamplingParams(), torch.zeros(4), limit=2), MAX_DEPTH)
    assert (whole.accepted_pos.tolist(), whole.num_accepted.tolist(), whole.next_id.tolist()) == (
        [[0, 1, 2, 3]],
        [4],
        [4],
    )
    assert (cut.accepted_pos.tolist(), cut.num_accepted.tolist(), cut.next_id.tolist()) == ([[0, 1, 0, 0]], [2], [2])


def test_more_than_one_sequence_is_refused():
    tree = DraftTree(*(torch.cat((field, field)) for field in chain(0, 1)))
    with pytest.raises(ValueError, match="tree must hold one sequence, got 2"):
        accept_chosen(tree, torch.zeros(2, 2, VOCAB_SIZE), Chooser(SamplingParams(), torch.zeros(4)), MAX_DEPTH)
