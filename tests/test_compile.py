"""Compiled decoding: the tokens are the target's own, graphs hold for every context, neighbours are left alone."""

from __future__ import annotations

import gc
import weakref
from functools import cache

import pytest
import torch
from torch._dynamo.utils import counters

from nanospec import SpeculativeDecoder, TreeShape
from nanospec.locality_tracker import LocalityTracker
from nanospec.vocab.full import FullVocab
from nanospec.vocab.in_context import InContextVocab
from tests.test_tree_drafter import TableDrafter
from tests.tiny_pair import VOCAB_SIZE, tiny_drafter, tiny_target

FREQUENT = torch.randperm(VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
POLICIES = ("full", "in-context", "static:7")
PROMPTS = ([5, 8, 13], [7] * 20, [9, 8] * 5, list(range(40)))
SAMPLED = {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.2, "seed": 3}
MOST_GRAPHS = 3  # draft, tree verification, plain decoding: one each for every context of at least two tokens


def decoder(policy: str = "in-context", compile: bool | str = "eager", **options) -> SpeculativeDecoder:
    target = tiny_target(seed=4)
    settings = {"tree": TreeShape(3, 3, 10), "capacity": 30, "frequent_ids": FREQUENT, **options}
    return SpeculativeDecoder(target, tiny_drafter(target, 2, std=0.02), policy, compile=compile, **settings)


shared_decoder = cache(decoder)  # for what does not count graphs: compiling is most of the time


def num_graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("policy", POLICIES)
def test_compiled_output_is_eager_output_is_autoregressive_output(policy, sampling):
    compiled, eager = shared_decoder(policy), decoder(policy, compile=False)
    for prompt in ([1, 2, 3], [7]):
        settings = {"max_new_tokens": 30, **sampling}
        result, expected = compiled.generate(prompt, **settings), eager.generate(prompt, **settings)
        assert result.token_ids == expected.token_ids
        assert result.token_ids == eager.generate_autoregressive(prompt, **settings).token_ids
        assert result.token_ids == compiled.generate_autoregressive(prompt, **settings).token_ids
        assert result.stats.mean_accept_length == expected.stats.mean_accept_length  # the same trees, too


def test_inductor_output_is_eager_output():
    compiled, eager = decoder(compile=True), decoder(compile=False)
    for settings in ({}, SAMPLED):
        result = compiled.generate([1, 2, 3], max_new_tokens=20, **settings)
        expected = eager.generate([1, 2, 3], max_new_tokens=20, **settings)
        assert result.token_ids == expected.token_ids
        assert result.stats.mean_accept_length == expected.stats.mean_accept_length


def test_graphs_hold_for_all_steps_vocabularies_and_contexts():
    before = num_graphs()
    compiled = decoder(tree=TreeShape(2, 3, 6), compile="aot_eager")
    for prompt in PROMPTS:
        compiled.generate(prompt, max_new_tokens=25)
        compiled.generate_autoregressive(prompt, max_new_tokens=5)
    assert num_graphs() - before == MOST_GRAPHS
    compiled.generate([7], max_new_tokens=5)  # a context of one token is a case of its own for Dynamo
    assert num_graphs() - before <= MOST_GRAPHS + 1


def test_trees_of_other_shapes_share_the_graph_of_the_target():
    compiled = decoder()
    compiled.warm_up()
    before = num_graphs()
    compiled.generate([1, 2, 3], max_new_tokens=20)
    assert num_graphs() == before, "warm_up compiles all that a request needs"
    for shape in (TreeShape(2, 2, 4), TreeShape(1, 5, 6)):
        loop, _ = compiled.speculate(torch.tensor([[3, 1, 4]]), shape, 12)
        assert sum(map(len, loop.steps())) >= 12
    assert num_graphs() - before == 2  # their drafts


def test_a_compiled_decoder_leaves_the_one_beside_it_alone():
    eager = decoder(compile=False)
    expected = eager.generate([3, 1], max_new_tokens=20)
    compiled = SpeculativeDecoder(
        eager.target, eager.drafter, "static:7", eager.tree, frequent_ids=FREQUENT, compile="eager"
    )
    assert compiled.target.model is eager.target.model
    stream = eager.stream([3, 1], max_new_tokens=20)
    tokens = list(next(stream).token_ids)
    assert compiled.generate([9, 9, 9], max_new_tokens=30).token_ids
    tokens += [token for piece in stream for token in piece.token_ids]
    assert tokens == expected.token_ids
    assert eager.last_stats.mean_accept_length == expected.stats.mean_accept_length
    assert eager.generate_autoregressive([3, 1], max_new_tokens=20).token_ids == expected.token_ids


def test_the_target_scores_all_ids_though_it_shares_its_head_with_the_drafter():
    compiled = shared_decoder("static:7")
    assert compiled.drafter.head.weight.data_ptr() == compiled.target.head_weight.data_ptr()
    few = set(FREQUENT[:7].tolist())
    tokens = compiled.generate([1, 2, 3], max_new_tokens=40).token_ids
    assert not set(tokens) <= few
    candidates = compiled.generate_autoregressive([1, 2, 3], max_new_tokens=3, return_candidates=True).candidates
    assert all(torch.tensor(position.logits).isfinite().all() for position in candidates)


def test_with_vocab_compiles_too_over_the_same_target():
    compiled = shared_decoder()
    other = compiled.with_vocab("full")
    assert other.target is compiled.target
    assert other.compile == compiled.compile
    before = num_graphs()
    assert other.generate([1, 2], max_new_tokens=9).token_ids == compiled.generate([1, 2], max_new_tokens=9).token_ids
    assert num_graphs() > before


def test_vocabularies_in_other_forms_draft_the_same_trees():
    expected = decoder(compile=False).generate([1, 2, 3], max_new_tokens=20).stats.mean_accept_length
    target = tiny_target(seed=4)
    unpacked = InContextVocab(target.head_weight, 30, packed=False)
    compiled = SpeculativeDecoder(
        target, tiny_drafter(target, 2, std=0.02), unpacked, TreeShape(3, 3, 10), compile="eager"
    )
    assert compiled.generate([1, 2, 3], max_new_tokens=20).stats.mean_accept_length == expected


def test_auto_tree_measures_the_compiled_decoder(monkeypatch):
    monkeypatch.setattr("nanospec.tree_tuning.PROBE_DEPTH", 3)
    compiled = decoder(tree="auto")
    assert compiled.target.compiled_by == "eager"
    plain = compiled.generate_autoregressive([1, 2, 3], max_new_tokens=20)
    assert compiled.generate([1, 2, 3], max_new_tokens=20).token_ids == plain.token_ids


def test_the_headless_probe_is_compiled_and_changes_nothing():
    compiled = shared_decoder()
    plain = compiled.generate([2, 4], max_new_tokens=20)
    probed = compiled.generate([2, 4], max_new_tokens=20, probe_headless=True)
    assert probed.token_ids == plain.token_ids
    assert probed.stats.step_tokens == plain.stats.step_tokens
    assert probed.stats.headless_draft_seconds > 0.0


def test_many_decoders_do_not_use_up_each_others_graphs():
    with torch._dynamo.config.patch(recompile_limit=1):
        for _ in range(2):
            before = num_graphs()
            decoder(tree=TreeShape(1, 2, 3)).generate([1, 2, 3], max_new_tokens=4)
            assert num_graphs() - before == 2


def test_graphs_go_with_their_decoder():
    compiled = decoder(tree=TreeShape(2, 2, 4))
    compiled.generate([1, 2, 3], max_new_tokens=4)
    parts = [weakref.ref(part) for part in (compiled, compiled.target, compiled.drafter)]
    del compiled
    gc.collect()
    assert [part() for part in parts] == [None, None, None]


def test_after_a_reset_of_dynamo_the_decoder_compiles_anew():
    compiled = decoder("full", tree=TreeShape(1, 2, 3))
    tokens = compiled.generate([1, 2, 3], max_new_tokens=12).token_ids
    torch._dynamo.reset()
    assert compiled.generate([1, 2, 3], max_new_tokens=12).token_ids == tokens


class NoViews:
    """A policy of somebody's own."""

    name, observes = "mine", False

    def __init__(self, inner: FullVocab) -> None:
        self.reset, self.learn, self.select = inner.reset, inner.learn, inner.select


def test_what_cannot_be_compiled_is_refused_by_name():
    target = tiny_target(seed=1)
    drafter, own = tiny_drafter(target, 1), NoViews(FullVocab(target.head_weight))
    with pytest.raises(TypeError, match=r"vocab must have vocabulary_views\(\) with compile=True, got NoViews"):
        SpeculativeDecoder(target, drafter, own, compile=True)
    with pytest.raises(
        ValueError, match="compile must be True, False or one of inductor, aot_eager, eager, got 'fast'"
    ):
        SpeculativeDecoder(target, drafter, "full", compile="fast")
    with pytest.raises(TypeError, match="compile must be True, False or one of .*, got 3"):
        SpeculativeDecoder(target, drafter, "full", compile=3)
    table = TableDrafter(torch.zeros(VOCAB_SIZE, VOCAB_SIZE, dtype=torch.float64))
    table.dtype = torch.float64
    with pytest.raises(NotImplementedError, match="compile=True needs an EagleDrafter as drafter, got TableDrafter"):
        SpeculativeDecoder(target, table, "full", compile=True)


def test_views_of_several_sequences_are_refused():
    with pytest.raises(ValueError, match="batch_size must be 1 for a compiled graph, got 2"):
        LocalityTracker(10, 4, batch_size=2).vocabulary_views()
    with pytest.raises(ValueError, match="batch_size must be 1 for a compiled graph, got 2"):
        InContextVocab(torch.zeros(10, 4), 4, batch_size=2).vocabulary_views()


@pytest.mark.parametrize("draft_temperature", [None, 1.0])
@pytest.mark.parametrize("policy", ["in-context", "static:7", "in-context+prior"])
def test_whatever_shapes_the_scores_the_head_stays_gathered(policy, draft_temperature):
    """A head that the passes declined would give the same tokens at many times the cost."""
    compiled = decoder(policy, draft_temperature=draft_temperature)
    compiled.warm_up()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        compiled.generate([1, 2, 3], max_new_tokens=10)
    calls = {event.key: event.count for event in profile.key_averages()}
    steps = compiled.last_stats.steps
    assert calls["nanospec::gathered_linear"] == steps * compiled.tree.depth
