"""Rows that choose in different ways: the groups, and the verdict of every row by itself."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec.batch.row_choice import RowChoice, verify_rows
from nanospec.records import DraftTree, Verdict
from nanospec.sampling import SamplingParams
from nanospec.target import Verification
from nanospec.tree_layout import ancestor_mask, node_depth
from nanospec.verifier import verify

CPU = torch.device("cpu")
PARAMS = (
    SamplingParams(),
    SamplingParams(repetition_penalty=1.5),
    SamplingParams(temperature=1.0, seed=3),
    SamplingParams(temperature=0.7, top_k=2, repetition_penalty=1.2, seed=4),
    SamplingParams(temperature=1.0, acceptance="typical", seed=5),
)


def test_rows_that_differ_by_the_seed_alone_are_one_group():
    sampled = [SamplingParams(temperature=0.5, seed=seed) for seed in (1, 2)]
    choice = RowChoice.of(sampled, CPU)
    assert choice.order is None
    assert choice.groups == [(SamplingParams(temperature=0.5), None)]


def test_the_worked_example():
    choice = RowChoice.of([SamplingParams(), SamplingParams(temperature=0.5), SamplingParams()], CPU)
    assert [rows.tolist() for _, rows in choice.groups] == [[0, 2], [1]]
    assert choice.order.tolist() == [0, 2, 1]


def random_tree(generator: torch.Generator, batch: int) -> DraftTree:
    """Root, two children, and one child of each; siblings are distinct."""
    parent_pos = torch.tensor([[0, 0, 0, 1, 2]]).repeat(batch, 1)
    token_ids = torch.randint(3, (batch, 5), generator=generator)
    token_ids[:, 2] = (token_ids[:, 1] + 1) % 4
    ancestors = ancestor_mask(parent_pos, 2)
    return DraftTree(token_ids, parent_pos, node_depth(ancestors), torch.zeros(batch, 5), ancestors)


@settings(max_examples=40)
@given(st.lists(st.sampled_from(PARAMS), min_size=1, max_size=5), st.integers(0, 999))
def test_every_row_has_the_verdict_that_it_has_alone(params, seed):
    generator, batch = torch.Generator().manual_seed(seed), len(params)
    tree = random_tree(generator, batch)
    logits = torch.randn(batch, 5, 4, generator=generator, dtype=torch.float64)
    output = Verification(logits, logits, logits.argsort(-1, descending=True), logits.sort(-1, descending=True).values)
    u = torch.rand(batch, 3, generator=generator, dtype=torch.float64)
    seen = torch.rand(batch, 4, generator=generator) < 0.5
    found = verify_rows(RowChoice.of(params, CPU), tree, output, u, seen, 2)
    for row, one in enumerate(params):
        part = slice(row, row + 1)
        alone = verify(
            DraftTree(*(field[part] for field in tree)), output.top_ids[part, :, 0], logits[part], one, u[part],
            seen[part], max_depth=2,
        )  # fmt: skip
        assert all(torch.equal(a[part], b) for a, b in zip(found, alone, strict=True))
    assert isinstance(found, Verdict)
