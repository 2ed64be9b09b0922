"""A target that is sharded over two and three processes decodes as a whole one does, in each of them."""

from __future__ import annotations

import torch

from nanospec import GatheredHead, Target
from tests.tensor_parallel import scenarios
from tests.tensor_parallel.decoding import (
    SHARDED_FAMILIES,
    TREE,
    decode,
    decode_family,
    decode_other_drafts,
    decoder_of,
    eagle3_drafter,
    greedy,
    load_model,
)
from tests.tiny_pair import tiny_drafter

ROUNDING = {"rtol": 1e-12, "atol": 1e-12}  # float64 sums of six products, in the order that a kernel likes


def whole_target(directory, name: str = "model") -> Target:
    return Target(load_model(directory / name))


def test_two_ranks_decode_as_one_process(run_ranks):
    ranks, directory = run_ranks(2)
    target = whole_target(directory)
    expected = decode(target, tiny_drafter(target, 1), len(ranks))
    assert all(rank["shared_head"] == expected for rank in ranks)


def test_three_ranks_with_a_head_of_uneven_parts_decode_as_one_process(run_ranks):
    ranks, directory = run_ranks(3)
    target = whole_target(directory)
    expected = decode(target, tiny_drafter(target, 1), len(ranks))
    assert all(rank["shared_head"] == expected for rank in ranks)


def test_a_draft_with_its_own_head_and_features_of_a_sharded_target_decodes_as_one_process(run_ranks):
    ranks, directory = run_ranks(3)
    expected = greedy(decoder_of(whole_target(directory, "deep"), eagle3_drafter(directory / "deep")))
    assert all(rank["own_head"] == expected for rank in ranks)


def test_other_drafts_decode_as_in_one_process(run_ranks):
    ranks, directory = run_ranks(2)
    expected = decode_other_drafts(whole_target(directory))
    assert all(rank["other_drafts"] == expected for rank in ranks)


def test_every_architecture_that_may_be_sharded_decodes_as_one_process(run_ranks):
    ranks, directory = run_ranks(2)
    expected = {name: decode_family(directory / name) for name in SHARDED_FAMILIES}
    assert all(rank["families"] == expected for rank in ranks)


def test_ranks_that_draft_and_draw_differently_yield_the_same_tokens(run_ranks):
    ranks, directory = run_ranks(2)
    first, second = (rank["ranks_that_differ"] for rank in ranks)
    plain = decoder_of(target := whole_target(directory), tiny_drafter(target, 0))
    expected = plain.generate_autoregressive(scenarios.PROMPT, max_new_tokens=scenarios.NUM_TOKENS).token_ids
    assert first["greedy"] == second["greedy"] == first["greedy again"] == second["greedy again"]
    assert first["greedy by other models"] == second["greedy by other models"]
    assert first["greedy"][0] == first["greedy by other models"][0] == expected
    assert first["unseeded"] == second["unseeded"]
    assert first["unseeded plain"] == second["unseeded plain"]


def test_whether_logits_are_finite_is_rank_0s_to_say(run_ranks):
    ranks, _ = run_ranks(2)
    first, second = (rank["ranks_with_broken_logits"] for rank in ranks)
    assert first == second
    whole = first.pop("whole")
    for name, tokens_or_message in first.items():
        if " 1 " in name:
            assert tokens_or_message == whole, name
        else:
            assert str(tokens_or_message).startswith("target logits must be finite"), name


def test_a_request_that_differs_between_ranks_is_refused_on_all_of_them(run_ranks):
    expected = "ValueError: request must be the same on all 2 ranks, got others than rank 0's on [1]"
    for rank in run_ranks(2)[0]:
        assert rank["ranks_that_differ"]["other prompts"] == expected
        assert rank["ranks_that_differ"]["other seeds"] == expected


def test_ranks_agree_on_what_rank_0_holds(run_ranks):
    expected = (torch.zeros(3, 2, dtype=torch.int64), torch.tensor([False]), torch.zeros(0), torch.tensor(0.25))
    for rank in run_ranks(2)[0]:
        seen = rank["agreement"]
        torch.testing.assert_close(seen["tensors"], expected, rtol=0, atol=0)
        assert seen["numbers"] == TREE._replace(num_nodes=5)
        assert seen["same"] == "no error"
        assert seen["other"] == "ValueError: thing must be the same on all 2 ranks, got others than rank 0's on [1]"


def test_what_a_sharded_target_cannot_do_is_refused_by_name(run_ranks):
    for rank in run_ranks(2)[0]:
        errors = rank["refusals"]
        assert errors["compile"].startswith("NotImplementedError: compile must be False with a tensor-parallel target")
        assert errors["cuda_graph"].startswith("NotImplementedError: cuda_graph must be False or None")
        assert errors["packed"].startswith("ValueError: packed must be False over a sharded head")
        assert errors["rows"].startswith("ValueError: rows must be None over a sharded head")
        assert errors["draft"].startswith("NotImplementedError: draft must be whole on every process")
        assert errors["generate"].startswith("NotImplementedError: model must be whole here")
        assert errors["sharded by columns"].startswith("NotImplementedError: head weight must be sharded by rows")
    for rank in run_ranks(3)[0]:
        expected = "NotImplementedError: target num_key_value_heads must be a multiple of the 3 ranks, got 2"
        assert rank["uneven_heads"] == expected


def test_parts_of_a_head_score_as_the_whole_and_alike_in_every_process(run_ranks):
    weight, bias, hidden = scenarios.head_case()
    head, parts = GatheredHead(weight, bias), [rank["head_parts"] for rank in run_ranks(3)[0]]
    for index, vocab in enumerate(scenarios.head_vocabularies()):
        logits, (ids, log_prob) = head(hidden, vocab), head.best(hidden, vocab, 3, 0.5)
        for part in parts:
            assert part["shape"] == weight.shape
            torch.testing.assert_close(part["logits"][index], logits, **ROUNDING)
            assert torch.equal(part["logits"][index], parts[0]["logits"][index])
            assert torch.equal(part["best"][index][0], ids)
            torch.testing.assert_close(part["best"][index][1], log_prob)
