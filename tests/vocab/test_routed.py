"""The routed vocabulary: what it selects at every level, and that no router changes an output."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec import SpeculativeDecoder, StaticTree, TreeShape
from nanospec.ops.cluster_union_reference import cluster_union_reference
from nanospec.successor_prior import SuccessorPrior
from nanospec.vocab.reduced import ReducedVocab
from nanospec.vocab.routed import RoutedVocab, parse_rows
from nanospec.vocab.router_file import write_router
from nanospec.vocab.with_prior import PriorVocab
from nanospec.vocab_selector import build_vocab_selector, fewest_rows
from tests.test_decoding_step import Waits, fixed_loop, tokens
from tests.tiny_pair import VOCAB_SIZE, tiny_drafter, tiny_eagle3_drafter, tiny_eagle3_target, tiny_target
from tests.tiny_router import tiny_router

SHAPE = TreeShape(3, 3, 10)
GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(20, 4, generator=GENERATOR, dtype=torch.float64)
SAMPLING = st.sampled_from([{}, {"temperature": 1.0}, {"temperature": 0.7, "repetition_penalty": 1.3}])


def routed(rows: int | tuple[int, ...], seed: int = 1, packed: bool = False) -> RoutedVocab:
    return RoutedVocab(WEIGHT, tiny_router(WEIGHT, seed), rows, packed)


def decoder_with(vocab_rows: tuple[int, ...], seed: int, prior: bool = False, **options) -> SpeculativeDecoder:
    target = tiny_target(seed % 4)
    vocab = RoutedVocab(target.head_weight, tiny_router(target.head_weight, seed), vocab_rows, packed=seed % 2 == 0)
    if prior:
        vocab = PriorVocab(vocab, SuccessorPrior(VOCAB_SIZE))
    return SpeculativeDecoder(target, tiny_drafter(target, 2, std=0.02), vocab, **{"tree": SHAPE, **options})


@settings(max_examples=30)
@given(rows=st.lists(st.integers(1, 20), min_size=1, max_size=3), seed=st.integers(0, 30), level=st.integers(0, 4))
def test_a_level_is_the_best_clusters_of_any_of_its_nodes(rows, seed, level):
    vocab = routed(tuple(rows), seed, packed=bool(seed % 2))
    states = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    chosen = vocab.select().at_level(states, level)
    router, num_rows = vocab.router, rows[min(level, len(rows) - 1)]
    hidden = states[0] @ router.hidden.weight.T + router.hidden.bias
    scores = (hidden * hidden.sigmoid()) @ router.score.weight.T + router.score.bias
    best = [max(scores[node, cluster].item() for node in range(3)) for cluster in range(7)]
    expected = cluster_union_reference(best, router.sizes.tolist(), num_rows)
    ids = chosen.draft_ids[0].tolist()
    assert ids == router.token_ids[expected].tolist()
    assert len(set(ids)) == len(ids) == num_rows == int(chosen.count)
    assert (chosen.rows is not None) == bool(seed % 2)
    assert chosen.rows is None or torch.equal(chosen.rows, WEIGHT[chosen.draft_ids])
    columns = vocab.columns(torch.arange(20)[None])[0].tolist()
    assert columns == [ids.index(token) if token in ids else -1 for token in range(20)]


@settings(max_examples=40)
@given(
    rows=st.lists(st.integers(3, VOCAB_SIZE), min_size=1, max_size=3),
    seed=st.integers(0, 20),
    prior=st.booleans(),
    fixed=st.booleans(),
    static=st.booleans(),
    prompt=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=12),
    max_new_tokens=st.integers(1, 40),
    sampling=SAMPLING,
)
def test_output_is_autoregressive_output(rows, seed, prior, fixed, static, prompt, max_new_tokens, sampling):
    sampling = {"seed": 7, **sampling}
    tree = StaticTree(((0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0))) if static else SHAPE
    decoder = decoder_with(tuple(rows), seed, prior, tree=tree)
    plain = decoder.generate_autoregressive(prompt, max_new_tokens=max_new_tokens, **sampling)
    if fixed:
        assert tokens(fixed_loop(decoder, prompt, max_new_tokens, **sampling))[:max_new_tokens] == plain.token_ids
    else:
        assert decoder.generate(prompt, max_new_tokens=max_new_tokens, **sampling).token_ids == plain.token_ids


@pytest.mark.parametrize("num_rows", [30, 12])
def test_a_draft_that_scores_few_ids_is_routed_over_its_own_head(num_rows):
    target = tiny_eagle3_target(3)
    drafter = tiny_eagle3_drafter(target, 2, num_rows)
    vocab = RoutedVocab(drafter.head.weight, tiny_router(drafter.head.weight, 5), (num_rows, 9))
    reduced = ReducedVocab(vocab, drafter.target_ids, VOCAB_SIZE)
    decoder = SpeculativeDecoder(target, drafter, reduced, SHAPE)
    plain = decoder.generate_autoregressive([5, 8, 13], max_new_tokens=30)
    result = decoder.generate([5, 8, 13], max_new_tokens=30)
    assert result.token_ids == plain.token_ids
    full = decoder.with_vocab(ReducedVocab(copy.deepcopy(vocab), drafter.target_ids, VOCAB_SIZE))
    chosen = full.vocab.select().at_level(torch.zeros(1, 1, 24, dtype=torch.float64), 1)
    assert torch.equal(drafter.target_ids[chosen.head_pos], chosen.draft_ids)


@pytest.mark.parametrize("prior", [False, True])
def test_with_all_clusters_trees_are_those_of_the_full_vocabulary(prior):
    decoder = decoder_with((VOCAB_SIZE,), 4, prior)
    full = decoder.with_vocab("full+prior" if prior else "full")
    for settings_ in ({}, {"temperature": 1.0, "seed": 3}):
        seen = []
        for each in (decoder, full):
            loop, _ = each._speculate(each._request([5, 8, 13] * 4, 30, **settings_), SHAPE)
            trees = []
            loop.on_verdict = lambda tree, verdict, accepted, trees=trees: trees.append(tree.token_ids.tolist())
            list(loop.steps())
            seen.append(trees)
        assert seen[0] == seen[1]
        assert len(seen[0]) > 3


def test_statistics_report_the_rows_of_a_level_on_average():
    decoder = decoder_with((30, 12, 12), 4)  # a tree of three levels
    assert decoder.generate([1, 2, 3], max_new_tokens=12).stats.mean_active_vocab == 18
    assert decoder.vocab.name == "routed-30,12"
    assert fewest_rows(decoder.vocab) == 12


@torch.inference_mode()
def test_nothing_inside_a_step_waits_for_the_device(monkeypatch):
    loop = fixed_loop(decoder_with((30, 12), 4, prior=True), [1, 2, 3], 20)
    steps = loop.steps()
    next(steps), next(steps)
    monkeypatch.setattr("nanospec.sampling.HOST_DEVICE", "none")
    with Waits() as waits:
        loop.fixed_steps._step.run(256)
    assert waits.found == []


def test_a_spec_names_the_file_and_may_name_the_rows(tmp_path):
    path = tmp_path / "router.safetensors"
    write_router(path, tiny_router(WEIGHT, 1), (9, 6), {})
    assert build_vocab_selector(f"routed:{path}", WEIGHT).num_rows == (9, 6)
    assert build_vocab_selector(f"routed:{path}:12", WEIGHT).num_rows == (12, 12)
    assert build_vocab_selector(f"routed:{path}:12,7+prior", WEIGHT).policy.num_rows == (12, 7)
    assert parse_rows("12,7") == (12, 7)
    assert build_vocab_selector(f"routed:{path}", WEIGHT.bfloat16()).router.score.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: routed(0), r"num_rows must be whole numbers in \[1, 20\], got \(0,\)"),
        (lambda: routed((5, 21)), r"num_rows must be whole numbers in \[1, 20\], got \(5, 21\)"),
        (lambda: routed(()), "num_rows must name the rows of at least one level"),
        (lambda: RoutedVocab(WEIGHT[:, :3], tiny_router(WEIGHT, 1), 5), "router must be made for a head of"),
        (lambda: RoutedVocab(WEIGHT.flip(0), tiny_router(WEIGHT, 1), 5), "router must be made for this head"),
        (lambda: parse_rows("5,x"), "rows must be N or N,N,.., rows per level of a tree, got '5,x'"),
        (lambda: decoder_with((30, 2), 1), "tree branching must be at most 2, the rows of the vocabulary"),
        (lambda: build_vocab_selector("routed:", WEIGHT), "vocab must be"),
    ],
)
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_compiling_is_refused_by_name():
    with pytest.raises(TypeError, match=r"vocabulary_views\(\) with compile=True, got RoutedVocab"):
        decoder_with((30,), 1, compile="eager")
    with pytest.raises(TypeError, match="got RoutedVocab"):
        decoder_with((30,), 1, prior=True, compile="eager")


def looking_ahead(seed: int, num_rows: tuple[int, ...], prior: bool = False, **options) -> SpeculativeDecoder:
    target = tiny_target(seed % 4)
    router = tiny_router(target.head_weight, seed, looks_ahead=True)
    vocab = RoutedVocab(target.head_weight, router, num_rows, packed=seed % 2 == 0, ahead=True)
    if prior:
        vocab = PriorVocab(vocab, SuccessorPrior(VOCAB_SIZE))
    return SpeculativeDecoder(target, tiny_drafter(target, 2, std=0.02), vocab, **{"tree": SHAPE, **options})


def test_what_is_picked_ahead_follows_from_the_tokens_and_the_states_before_them():
    router = tiny_router(WEIGHT, 3, looks_ahead=True)
    vocab = RoutedVocab(WEIGHT, router, (9, 6), ahead=True)
    chosen, states = vocab.select(), torch.randn(1, 2, 4, generator=GENERATOR, dtype=torch.float64)
    ids = torch.tensor([[7, 2]])
    chosen.look_ahead(ids, states, 1)
    got = chosen.at_level(torch.full_like(states, torch.nan), 1).draft_ids[0].tolist()
    inputs = torch.cat((WEIGHT[ids], states), -1)
    best = router.double().ahead(inputs)[0].amax(0).tolist()
    assert got == router.token_ids[cluster_union_reference(best, router.sizes.tolist(), 6)].tolist()
    chosen.look_ahead(ids, states, 1)
    root = chosen.at_level(states, 0).draft_ids
    assert torch.equal(root, RoutedVocab(WEIGHT, router, (9, 6)).select().at_level(states, 0).draft_ids)


@pytest.mark.parametrize("static", [False, True])
def test_the_side_is_left_before_the_drafters_layer_runs_and_joined_after_it(static):
    tree = StaticTree(((0,), (1,), (0, 0), (0, 0, 0))) if static else SHAPE
    decoder, events = looking_ahead(2, (20,), tree=tree), []

    class Recorder:
        def fork(self):
            events.append("fork")
            return nullcontext()

        def join(self):
            events.append("join")

    decoder.vocab._side, advance = Recorder(), decoder.drafter.advance
    decoder.drafter.advance = lambda *inputs: events.append("layer") or advance(*inputs)
    stats = decoder.generate([1, 2, 3], max_new_tokens=12).stats
    assert events == ["fork", "layer", "join"] * (2 * stats.steps)  # three levels: the first one needs no layer


@settings(max_examples=15)
@given(
    num_rows=st.lists(st.integers(3, VOCAB_SIZE), min_size=1, max_size=3),
    seed=st.integers(0, 20),
    prior=st.booleans(),
    fixed=st.booleans(),
    prompt=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=12),
    sampling=SAMPLING,
)
def test_output_is_autoregressive_output_where_levels_are_picked_ahead(num_rows, seed, prior, fixed, prompt, sampling):
    sampling, decoder = {"seed": 7, **sampling}, looking_ahead(seed, tuple(num_rows), prior)
    plain = decoder.generate_autoregressive(prompt, max_new_tokens=20, **sampling)
    if fixed:
        assert tokens(fixed_loop(decoder, prompt, 20, **sampling))[:20] == plain.token_ids
    else:
        assert decoder.generate(prompt, max_new_tokens=20, **sampling).token_ids == plain.token_ids


def test_a_draft_that_scores_few_ids_is_picked_for_by_rows_of_its_own_head():
    target = tiny_eagle3_target(3)
    drafter = tiny_eagle3_drafter(target, 2, 30)
    weight = drafter.head.weight
    vocab = RoutedVocab(weight, tiny_router(weight, 5, looks_ahead=True), (30, 9), ahead=True)
    reduced = ReducedVocab(vocab, drafter.target_ids, VOCAB_SIZE)
    states = torch.randn(1, 2, weight.shape[1], generator=GENERATOR, dtype=torch.float64)
    rows = torch.tensor([[4, 11]])
    reduced.select().look_ahead(drafter.target_ids[rows], states, 1)
    got = reduced.select().at_level(states, 1).head_pos
    vocab.look_ahead(rows, states, 1)
    assert torch.equal(got, vocab.at_level(states, 1).draft_ids)
    decoder = SpeculativeDecoder(target, drafter, reduced, SHAPE)
    plain = decoder.generate_autoregressive([5, 8, 13], max_new_tokens=20)
    assert decoder.generate([5, 8, 13], max_new_tokens=20).token_ids == plain.token_ids


def test_looking_ahead_is_for_cuda_unless_asked_for_and_needs_a_router_that_can():
    router = tiny_router(WEIGHT, 1, looks_ahead=True)
    assert RoutedVocab(WEIGHT, router, 5).select().look_ahead is None
    assert RoutedVocab(WEIGHT, router, 5, ahead=True).select().look_ahead is not None
    with pytest.raises(ValueError, match="router must look ahead with ahead=True, got one that was not trained to"):
        RoutedVocab(WEIGHT, tiny_router(WEIGHT, 1), 5, ahead=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: captures and replays CUDA graphs")
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "seed": 5}])
@pytest.mark.parametrize("prior", [False, True])
def test_captured_steps_with_a_side_stream_give_the_tokens_of_plain_ones(prior, sampling):
    target = tiny_target(2, dtype=torch.float32).cuda()
    drafter, weight = tiny_drafter(target, 2, std=0.02), target.head_weight
    results = []
    for is_captured in (True, False):
        vocab = RoutedVocab(weight, tiny_router(weight.cpu(), 2, looks_ahead=True).cuda(), (30, 12))
        assert vocab.select().look_ahead is not None
        if prior:
            vocab = PriorVocab(vocab, SuccessorPrior(VOCAB_SIZE, device=weight.device))
        decoder = SpeculativeDecoder(target, drafter, vocab, SHAPE, cuda_graph=is_captured)
        results.append([decoder.generate([1, 2, 3], max_new_tokens=60, **sampling) for _ in range(2)])
    for captured, plain in zip(*results, strict=True):
        assert captured.token_ids == plain.token_ids
        assert captured.stats.target_passes == plain.stats.target_passes
