from __future__ import annotations

import pytest
import torch

from nanospec.records import DraftTree
from nanospec.sampling import SamplingParams
from nanospec.tree_layout import ancestor_mask, node_depth
from nanospec.verifier import verify

VOCAB = 6
# root 0 -> {1, 2}, 2 -> 3: the example in the docstring of Verdict.
PARENTS = torch.tensor([[0, 0, 0, 2]])
BEST = torch.tensor([[2, 5, 3, 4]])
SAMPLED = SamplingParams(temperature=1.0, repetition_penalty=1.2)


def example_tree() -> DraftTree:
    mask = ancestor_mask(PARENTS, 2)
    return DraftTree(torch.tensor([[0, 1, 2, 3]]), PARENTS, node_depth(mask), torch.zeros(1, 4), mask)


def certain_logits() -> torch.Tensor:
    """Logits so far apart that sampling has one outcome, that of `BEST`."""
    return torch.nn.functional.one_hot(BEST, VOCAB) * 1e4


def test_greedy_reads_the_best_ids_only():
    verdict = verify(example_tree(), BEST, None, SamplingParams(), max_depth=2)
    assert [field.tolist() for field in verdict] == [[[0, 2, 3]], [3], [4]]


@pytest.mark.parametrize("params", [SAMPLED, SamplingParams(temperature=0.5), SamplingParams(repetition_penalty=1.1)])
def test_sampled_and_penalized_read_the_logits_only(params):
    seen = torch.zeros(1, VOCAB, dtype=torch.bool)
    verdict = verify(example_tree(), None, certain_logits(), params, torch.full((1, 3), 0.5), seen, max_depth=2)
    assert [field.tolist() for field in verdict] == [[[0, 2, 3]], [3], [4]]


def test_greedy_with_a_penalty_needs_no_random_numbers():
    seen = torch.zeros(1, VOCAB, dtype=torch.bool)
    params = SamplingParams(repetition_penalty=1.1)
    assert verify(example_tree(), None, certain_logits(), params, None, seen, max_depth=2).next_id.tolist() == [4]


@pytest.mark.parametrize(
    ("missing", "params"),
    [
        ("best_id", SamplingParams()),
        ("logits", SAMPLED),
        ("logits", SamplingParams(repetition_penalty=1.1)),
        ("u", SAMPLED),
        ("seen", SAMPLED),
    ],
)
def test_a_missing_or_misshapen_argument_is_named(missing, params):
    arguments = {
        "best_id": BEST,
        "logits": certain_logits(),
        "u": torch.full((1, 3), 0.5),
        "seen": torch.zeros(1, VOCAB, dtype=torch.bool),
    }
    with pytest.raises(ValueError, match=rf"^{missing} must .* got None"):
        verify(example_tree(), params=params, max_depth=2, **{**arguments, missing: None})
    with pytest.raises(ValueError, match=rf"^{missing} must have shape .* got \[1, 1\]"):
        verify(example_tree(), params=params, max_depth=2, **{**arguments, missing: torch.zeros(1, 1)})


def test_negative_depth_is_refused():
    with pytest.raises(ValueError, match="max_depth must be at least 0, got -1"):
        verify(example_tree(), BEST, None, SamplingParams(), max_depth=-1)
