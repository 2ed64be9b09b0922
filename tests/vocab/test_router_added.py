"""A router that adds rows to a vocabulary of the context: which ones at every level, and never another output."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec import InContextVocab, SpeculativeDecoder, StaticTree, TreeShape
from nanospec.successor_prior import SuccessorPrior
from nanospec.vocab.batching import for_batch
from nanospec.vocab.routed import RoutedVocab
from nanospec.vocab.router_added import RouterAddedVocab
from nanospec.vocab.router_file import write_router
from nanospec.vocab.static import StaticVocab
from nanospec.vocab.with_prior import PriorVocab
from nanospec.vocab_selector import build_reduced_vocab, build_vocab_selector
from tests.test_decoding_step import Waits, fixed_loop, tokens
from tests.tiny_pair import VOCAB_SIZE, tiny_drafter, tiny_target
from tests.tiny_router import tiny_router

SHAPE = TreeShape(3, 3, 10)
GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(20, 4, generator=GENERATOR, dtype=torch.float64)
FREQUENT = torch.randperm(VOCAB_SIZE, generator=GENERATOR)


def added(
    weight: torch.Tensor, seed: int, num_named: int, num_added: int, capacity: int, packed: bool, num_pinned: int = 0
) -> RouterAddedVocab:
    pinned_ids = torch.arange(num_pinned) if num_pinned else None
    policy = InContextVocab(weight, capacity, packed=packed, pinned_ids=pinned_ids)
    looks_ahead = seed % 3 == 0
    routed = RoutedVocab(weight, tiny_router(weight, seed, looks_ahead=looks_ahead), num_named, ahead=looks_ahead)
    return RouterAddedVocab(policy, routed, num_added)


def decoder_with(seed: int, prior: bool = False, capacity: int = 30, num_added: int = 6, **options):
    target = tiny_target(seed % 4)
    vocab = added(target.head_weight, seed, 2 * num_added, num_added, capacity, packed=seed % 2 == 0, num_pinned=3)
    if prior:
        vocab = PriorVocab(vocab, SuccessorPrior(VOCAB_SIZE))
    return SpeculativeDecoder(target, tiny_drafter(target, 2, std=0.02), vocab, **{"tree": SHAPE, **options})


@settings(max_examples=40)
@given(
    seed=st.integers(0, 30),
    num_added=st.integers(1, 8),
    more=st.integers(0, 10),
    capacity=st.integers(4, 20),
    num_pinned=st.integers(0, 4),
    seen=st.lists(st.integers(0, 19), max_size=16),
)
def test_a_level_is_what_the_context_holds_and_what_the_router_names_first_of_the_rest(
    seed, num_added, more, capacity, num_pinned, seen
):
    vocab = added(WEIGHT, seed, num_added + more, num_added, capacity, bool(seed % 2), num_pinned)
    vocab.policy.observe(torch.tensor([seen], dtype=torch.int64).view(1, -1))
    chosen = vocab.select()
    held = vocab.policy.select().draft_ids[0, : int(vocab.policy.select().count)].tolist()
    for level in range(3):
        states = torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(seed + level), dtype=torch.float64)
        named = vocab.routed.at_level(states, level).draft_ids[0].tolist()
        drafted = chosen.at_level(states, level)
        count = int(drafted.count)
        ids = drafted.draft_ids[0, :count].tolist()
        assert ids == held + [token for token in named if token not in held][: min(num_added, capacity - len(held))]
        assert count <= int(chosen.count)
        assert (drafted.rows is not None) == bool(seed % 2)
        assert drafted.rows is None or torch.equal(drafted.rows[0, :count], WEIGHT[ids])
        columns = vocab.columns(torch.arange(20)[None])[0].tolist()
        assert columns == [ids.index(token) if token in ids else -1 for token in range(20)]
    after = vocab.policy.select()
    assert after.draft_ids[0, : int(after.count)].tolist() == held, "what was added leaves no trace"


@settings(max_examples=25)
@given(
    seed=st.integers(0, 20),
    prior=st.booleans(),
    capacity=st.integers(6, VOCAB_SIZE),
    num_added=st.integers(1, 20),
    fixed=st.booleans(),
    static=st.booleans(),
    prompt=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=12),
    max_new_tokens=st.integers(1, 30),
    sampling=st.sampled_from([{}, {"temperature": 1.0}, {"temperature": 0.7, "repetition_penalty": 1.3}]),
)
def test_output_is_autoregressive_output(
    seed, prior, capacity, num_added, fixed, static, prompt, max_new_tokens, sampling
):
    sampling = {"seed": 7, **sampling}
    tree = StaticTree(((0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0))) if static else SHAPE
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOSPEC_CHECKS", "1")  # of the vocabulary's state, after every step
        decoder = decoder_with(seed, prior, capacity, num_added, tree=tree)
        plain = decoder.generate_autoregressive(prompt, max_new_tokens=max_new_tokens, **sampling)
        if fixed:
            got = tokens(fixed_loop(decoder, prompt, max_new_tokens, **sampling))[:max_new_tokens]
        else:
            got = decoder.generate(prompt, max_new_tokens=max_new_tokens, **sampling).token_ids
    assert got == plain.token_ids


@pytest.mark.parametrize("prior", [False, True])
def test_with_all_rows_added_trees_are_those_of_the_full_vocabulary(prior):
    decoder = decoder_with(2, prior, VOCAB_SIZE, VOCAB_SIZE // 2)
    decoder.vocab = PriorVocab(all_added(decoder), SuccessorPrior(VOCAB_SIZE)) if prior else all_added(decoder)
    seen = []
    for each in (decoder.with_vocab(decoder.vocab), decoder.with_vocab("full+prior" if prior else "full")):
        loop, _ = each._speculate(each._request([5, 8, 13] * 4, 30), SHAPE)
        trees = []
        loop.on_verdict = lambda tree, verdict, accepted, trees=trees: trees.append(tree.token_ids.tolist())
        list(loop.steps())
        seen.append(trees)
    assert seen[0] == seen[1]
    assert len(seen[0]) > 3


def all_added(decoder: SpeculativeDecoder) -> RouterAddedVocab:
    return added(decoder.target.head_weight, 2, VOCAB_SIZE, VOCAB_SIZE, VOCAB_SIZE, True)


@torch.inference_mode()
def test_nothing_inside_a_step_waits_for_the_device(monkeypatch):
    loop = fixed_loop(decoder_with(3, prior=True), [1, 2, 3], 20)
    steps = loop.steps()
    next(steps), next(steps)
    monkeypatch.setattr("nanospec.sampling.HOST_DEVICE", "none")
    with Waits() as waits:
        loop.fixed_steps._step.run(256)
    assert waits.found == []


def test_a_spec_names_the_base_the_file_and_the_rows(tmp_path):
    path = tmp_path / "router.safetensors"
    write_router(path, tiny_router(WEIGHT, 1), (9, 6), {})
    vocab = build_vocab_selector(f"hybrid:4+routed:{path}:3", WEIGHT, capacity=12, frequent_ids=torch.arange(9))
    assert (vocab.name, vocab.num_added, vocab.routed.num_rows) == ("hybrid-4+routed-3", 3, (12,))
    assert vocab.select().draft_ids.shape == (1, 12)
    vocab = build_vocab_selector(f"in-context+routed:{path}:9+prior", WEIGHT, capacity=12)
    assert (vocab.name, vocab.policy.routed.num_rows) == ("in-context+routed-9+prior", (20,))
    for base in ("full", "static:3", "hybrid:auto", "hybrid:3+prior"):
        with pytest.raises(ValueError, match=r"a router that adds rows must be 'in-context\+routed:FILE:N' or .*, got"):
            build_vocab_selector(f"{base}+routed:{path}:3", WEIGHT, 12, frequent_ids=torch.arange(9))
    for rows in ("", ":0", ":3,2"):
        with pytest.raises(ValueError, match="N at least 1, got"):
            build_vocab_selector(f"in-context+routed:{path}{rows}", WEIGHT, 12)
    with pytest.raises(NotImplementedError, match="a router adds no rows where a draft scores 20 of 30 ids"):
        build_reduced_vocab(f"in-context+routed:{path}:3", WEIGHT, torch.arange(20), 30, 12)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda routed: (StaticVocab(WEIGHT, torch.arange(3)), routed, 2), TypeError, "must be an InContextVocab"),
        (lambda routed: (InContextVocab(WEIGHT, 9, 2), routed, 2), ValueError, "policy must be of one sequence, got 2"),
        (lambda routed: (InContextVocab(WEIGHT.flip(0), 9), routed, 2), ValueError, "made for this head"),
        (lambda routed: (InContextVocab(WEIGHT, 9), routed, 6), ValueError, r"num_added must be in \[1, 5\]"),
        (lambda routed: (InContextVocab(WEIGHT, 9), routed, 0), ValueError, "num_added must be"),
        (
            lambda routed: (InContextVocab(WEIGHT, 9), RoutedVocab(WEIGHT, routed.router, (5, 4)), 2),
            ValueError,
            "routed must name as many rows at every level",
        ),
    ],
)
def test_what_does_not_fit_is_named(make, error, message):
    with pytest.raises(error, match=message):
        RouterAddedVocab(*make(RoutedVocab(WEIGHT, tiny_router(WEIGHT, 1), 5)))


def test_compiling_and_batches_are_refused_by_name():
    with pytest.raises(TypeError, match=r"vocabulary_views\(\) with compile=True, got RouterAddedVocab"):
        decoder_with(1, compile="eager")
    with pytest.raises(TypeError, match=r"vocab must have for_batch, .* in a batch, got RouterAddedVocab"):
        for_batch(decoder_with(1).vocab, 2)
