"""Medusa heads against the paper's formula, written head by head."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanospec import TreeDrafter, TreeShape, build_vocab_selector
from nanospec.drafters.drafter import DepthLimited, Drafter, FixedShapeDrafter, deepest_tree
from nanospec.drafters.medusa import MedusaDrafter
from nanospec.records import DraftVocab
from nanospec.vocab.full import FullVocab
from tests.tiny_medusa import FEW_IDS, tiny_medusa
from tests.tiny_pair import tiny_drafter, tiny_target

# One head at a time instead of all in one product: float64 sums of 24 terms in another order.
ATOL = 1e-12
OUTPUTS = ("own", "shared", "target")
MAP = torch.tensor([4, 0, 16, 9, 2])


def plain_logits(drafter: MedusaDrafter, head: int, feature: Tensor) -> Tensor:
    """logits [V] of one head after one feature [D]."""
    x = feature
    for layer in range(drafter.shape.num_layers):
        inner = drafter.blocks[layer, head] @ x
        if drafter.biases is not None:
            inner = inner + drafter.biases[layer, head]
        x = x + inner * torch.sigmoid(inner)
    if drafter.shape.num_outputs == 0:
        return drafter._shared[0].weight @ x
    rows = drafter.outputs[head if drafter.shape.num_outputs > 1 else 0]
    if drafter.token_map is None:
        return rows @ x
    logits = torch.full((FEW_IDS,), -torch.inf, dtype=x.dtype)
    for row, token_id in enumerate(drafter.token_map.tolist()):
        logits[token_id] = rows[row] @ x
    return logits


def states_of_levels(drafter: MedusaDrafter, features: Tensor) -> list[Tensor]:
    """The root's state, then one per further head."""
    token_ids = torch.zeros(features.shape[:2], dtype=torch.int64)
    states = [drafter.extend(token_ids, features)]
    for depth in range(1, drafter.max_depth):
        visible = torch.ones(1, 1, depth, dtype=torch.bool)
        states.append(drafter.advance(token_ids[:, :1], states[-1], depth, visible))
    return states


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize(("num_layers", "bias"), [(0, False), (1, True), (1, False), (2, True)])
def test_every_head_is_the_formula_over_the_last_feature(outputs: str, num_layers: int, bias: bool) -> None:
    target = tiny_target(1, FEW_IDS)
    drafter = tiny_medusa(target, 2, num_layers=num_layers, outputs=outputs, bias=bias)
    vocab = build_vocab_selector("full", target.head_weight).select()
    features = torch.randn(1, 4, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for head, state in enumerate(states_of_levels(drafter, features)):
        expected = plain_logits(drafter, head, features[0, -1])
        torch.testing.assert_close(drafter.logits(state, vocab)[0, 0], expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("outputs", "has_map"), [("own", False), ("own", True), ("shared", False), ("shared", True), ("target", False)]
)
def test_a_draft_vocabulary_gathers_the_rows_of_each_head(outputs: str, packed: bool, has_map: bool) -> None:
    target = tiny_target(1, FEW_IDS)
    drafter = tiny_medusa(target, 2, outputs=outputs, token_map=MAP if has_map else None)
    ids, count = torch.tensor([[9, 16, 3, 9, 9]]), torch.tensor([3], dtype=torch.int32)
    vocab = DraftVocab(ids, count, target.head_weight.detach()[ids] if packed else None)
    features = torch.randn(1, 1, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for head, state in enumerate(states_of_levels(drafter, features)):
        logits = drafter.logits(state.expand(-1, 2, -1), vocab)[0]
        expected = plain_logits(drafter, head, features[0, 0])[ids[0, :3]].expand(2, -1)
        torch.testing.assert_close(logits[:, :3], expected, rtol=0, atol=ATOL)
        assert logits[:, 3:].eq(-torch.inf).all()


@pytest.mark.parametrize("outputs", ["own", "shared"])
def test_ids_outside_the_token_map_are_never_drafted(outputs: str) -> None:
    target = tiny_target(1, FEW_IDS)
    drafter = tiny_medusa(target, 2, outputs=outputs, token_map=MAP)
    features = torch.randn(1, 1, 24, dtype=torch.float64)
    for policy in (FullVocab(target.head_weight), FullVocab(target.head_weight.clone())):  # as a whole, and gathered
        for head, state in enumerate(states_of_levels(drafter, features)):
            logits = drafter.logits(state, policy.select())[0, 0]
            torch.testing.assert_close(logits, plain_logits(drafter, head, features[0, 0]), rtol=0, atol=ATOL)
        tree = TreeDrafter(drafter, TreeShape(3, 8, 40)).draft(
            torch.zeros(1, 1, dtype=torch.int64), states_of_levels(drafter, features)[0], policy.select()
        )
        drafted = tree.token_ids[0, 1:]
        assert set(drafted[drafted >= 0].tolist()) <= set(MAP.tolist())
        assert (drafted >= 0).any()


def test_sequences_of_a_batch_do_not_mix() -> None:
    target = tiny_target(1, FEW_IDS)
    drafter = tiny_medusa(target, 2, num_layers=2)
    features = torch.randn(3, 2, 24, dtype=torch.float64)
    together = drafter.extend(torch.zeros(3, 2, dtype=torch.int64), features)
    assert together.shape == (3, 1, drafter.state_size)
    for row in range(3):
        alone = drafter.extend(torch.zeros(1, 2, dtype=torch.int64), features[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=ATOL)


@settings(max_examples=40)
@given(st.integers(0, 99), st.integers(1, 4), st.integers(1, 5), st.data())
def test_the_dynamic_tree_holds_the_best_of_all_combinations_of_ranks(seed, depth, branching, data) -> None:
    """No level has more parents than the frontier takes as long as num_nodes - 1 <= 2 * branching + 1."""
    most = min(1 + TreeShape(depth, branching, 2).num_candidates, 2 * branching + 2)
    shape = TreeShape(depth, branching, data.draw(st.integers(2, most)))
    target = tiny_target(1, FEW_IDS)
    drafter = tiny_medusa(target, seed, num_heads=4)
    feature = torch.randn(1, 1, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    vocab = build_vocab_selector("full", target.head_weight).select()
    root = drafter.extend(torch.zeros(1, 1, dtype=torch.int64), feature)
    tree = TreeDrafter(drafter, shape).draft(torch.zeros(1, 1, dtype=torch.int64), root, vocab)

    levels = [plain_logits(drafter, head, feature[0, 0]).log_softmax(-1).topk(branching) for head in range(depth)]
    scores, paths = [], {(): 0.0}
    for level in levels:
        paths = {
            (*path, token): score + value
            for path, score in paths.items()
            for value, token in zip(level.values.tolist(), level.indices.tolist(), strict=True)
        }
        scores += paths.values()
    best = torch.tensor(sorted(scores, reverse=True)[: shape.num_nodes - 1])
    # The drafter's scores are float32.
    torch.testing.assert_close(tree.score[0, 1:].sort(descending=True).values, best, rtol=1e-5, atol=1e-5)


def test_a_tree_deeper_than_there_are_heads_is_refused() -> None:
    target = tiny_target(1, FEW_IDS)
    drafter = tiny_medusa(target, 2, num_heads=2)
    root = drafter.extend(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, 24, dtype=torch.float64))
    vocab = build_vocab_selector("full", target.head_weight).select()
    with pytest.raises(ValueError, match="tree depth must be at most 2, the number of Medusa heads"):
        TreeDrafter(drafter, TreeShape(3, 2, 4)).draft(torch.zeros(1, 1, dtype=torch.int64), root, vocab)


def test_it_is_a_drafter_of_limited_depth_with_passes_of_fixed_shape() -> None:
    target = tiny_target(1, FEW_IDS)
    drafter = tiny_medusa(target, 2)
    assert isinstance(drafter, Drafter)
    assert isinstance(drafter, FixedShapeDrafter)
    assert isinstance(drafter, DepthLimited)
    assert deepest_tree(drafter) == 3
    assert deepest_tree(tiny_drafter(target, 1)) is None


def test_the_targets_head_is_neither_saved_nor_moved_with_the_drafter() -> None:
    drafter = tiny_medusa(tiny_target(1, FEW_IDS), 2, outputs="target")
    head = drafter._shared[0]
    drafter.float()
    assert head.weight.dtype == torch.float64
    assert set(drafter.state_dict()) == {"blocks", "biases"}
