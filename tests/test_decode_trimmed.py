"""Exactness with trimmed drafts, and what they are: the untrimmed ones over a static list."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec import SpeculativeDecoder, Target, TreeShape
from nanospec.checkpoints import load_drafter, save_drafter
from nanospec.checkpoints.trim import read_draft_head, trim_draft
from nanospec.drafters.eagle import EagleDrafter
from nanospec.records import DraftTree
from nanospec.vocab.static_list import write_static_list
from tests.tiny_pair import VOCAB_SIZE, tiny_drafter, tiny_eagle3_drafter, tiny_eagle3_target, tiny_target

TREE = TreeShape(3, 3, 10)
SAMPLED = {"temperature": 1.0, "seed": 5}
MIN_IDS = TREE.branching
SCORE_TOLERANCE = 1e-5  # scores are float32, of either way to the same sums
DRAFTS = ("eagle", "eagle3 of all ids", "eagle3 of 40 ids")

prompts = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=8)


@cache
def pair(draft: str) -> tuple[Target, EagleDrafter]:
    if draft == "eagle":
        target = tiny_target(4)
        return target, tiny_drafter(target, 2, std=0.02)
    target = tiny_eagle3_target(4)
    drafter = tiny_eagle3_drafter(target, 2, VOCAB_SIZE if draft.endswith("all ids") else 40)
    return target, drafter


def trimmed(target: Target, drafter: EagleDrafter, ids: list[int]) -> EagleDrafter:
    """The drafter written, trimmed and read back."""
    with TemporaryDirectory() as directory:
        save_drafter(drafter, Path(directory) / "whole")
        trim_draft(read_draft_head(Path(directory) / "whole", target), torch.tensor(ids), Path(directory) / "trimmed")
        loaded = load_drafter(Path(directory) / "trimmed", target)
    assert isinstance(loaded, EagleDrafter)
    return loaded


def sayable_ids(drafter: EagleDrafter) -> list[int]:
    return list(range(VOCAB_SIZE)) if drafter.target_ids is None else drafter.target_ids.tolist()


@st.composite
def chosen_ids(draw: st.DrawFn, draft: str) -> list[int]:
    return draw(st.lists(st.sampled_from(sayable_ids(pair(draft)[1])), min_size=MIN_IDS, max_size=30, unique=True))


@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("policy", ["full", "in-context"])
@pytest.mark.parametrize("draft", DRAFTS)
@settings(max_examples=4)
@given(data=st.data(), prompt=prompts)
def test_output_is_autoregressive_output(draft, policy, sampling, data, prompt):
    target, drafter = pair(draft)
    ids = data.draw(chosen_ids(draft))
    decoder = SpeculativeDecoder(target, trimmed(target, drafter, ids), policy, TREE, capacity=20)
    plain = decoder.generate_autoregressive(prompt, max_new_tokens=16, **sampling)
    assert decoder.generate(prompt, max_new_tokens=16, **sampling).token_ids == plain.token_ids


def grown_trees(decoder: SpeculativeDecoder, prompt: list[int]) -> list[DraftTree]:
    loop, _ = decoder.speculate(torch.tensor([prompt]), TREE, 16)
    trees: list[DraftTree] = []
    loop.on_verdict = lambda tree, verdict, accepted: trees.append(DraftTree(*(part.clone() for part in tree)))
    assert sum(map(len, loop.steps())) >= 16
    return trees


@pytest.mark.parametrize("draft", DRAFTS)
@settings(max_examples=6)
@given(data=st.data(), prompt=prompts)
def test_its_trees_are_those_of_the_whole_draft_over_a_static_list(draft, data, prompt):
    target, drafter = pair(draft)
    ids = data.draw(chosen_ids(draft))
    with TemporaryDirectory() as directory:
        write_static_list(Path(directory) / "list.pt", torch.tensor(sorted(ids)))  # ties go to the first column
        static = SpeculativeDecoder(target, drafter, f"static:{directory}/list.pt", TREE)
    expected = grown_trees(static, prompt)
    trees = grown_trees(SpeculativeDecoder(target, trimmed(target, drafter, ids), "full", TREE), prompt)
    assert len(trees) == len(expected)
    for tree, other in zip(trees, expected, strict=True):
        torch.testing.assert_close(tree.score, other.score, atol=SCORE_TOLERANCE, rtol=0)
        for part in ("token_ids", "parent_pos", "depth", "ancestor_mask"):
            assert torch.equal(getattr(tree, part), getattr(other, part)), part


@pytest.mark.parametrize("draft", DRAFTS)
def test_the_trimmed_drafter_is_right_now_and_then(draft):
    """Guards the property above: with a drafter that is never right it would hold for a broken walk too."""
    target, drafter = pair(draft)
    decoder = SpeculativeDecoder(target, trimmed(target, drafter, sayable_ids(drafter)[:-5]), "full", TREE)
    assert decoder.generate([1, 2, 3], max_new_tokens=60).stats.mean_accept_length > 1.2


@pytest.mark.parametrize("draft", DRAFTS)
def test_a_directory_is_a_static_list_of_the_ids_that_its_draft_scores(draft, tmp_path):
    target, drafter = pair(draft)
    ids = sayable_ids(drafter)[3:23]
    save_drafter(trimmed(target, drafter, ids), tmp_path / "trimmed")
    decoder = SpeculativeDecoder(target, drafter, f"static:{tmp_path / 'trimmed'}", TREE)
    assert decoder.vocab.select(None).draft_ids[0].tolist() == ids


def test_compiled_output_of_a_trimmed_draft_is_eager_output():
    target, drafter = pair("eagle")
    short = trimmed(target, drafter, sayable_ids(drafter)[5:40])
    eager, compiled = (
        SpeculativeDecoder(target, short, "in-context", TREE, capacity=30, compile=how).generate(
            [1, 2, 3], max_new_tokens=20
        )
        for how in (False, "eager")
    )
    assert compiled.token_ids == eager.token_ids
    assert compiled.stats.mean_accept_length == eager.stats.mean_accept_length  # the same trees, too
