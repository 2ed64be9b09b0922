"""Exactness of the whole decoder: whatever drafts, from whatever vocabulary, the output is the target's own."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec import SpeculativeDecoder, TreeShape
from tests.tiny_pair import VOCAB_SIZE, tiny_drafter, tiny_model, tiny_target

POLICIES = ("full", "in-context", "context-only", "extension-only", "static:5", "static:60")
FREQUENT = torch.randperm(VOCAB_SIZE, generator=torch.Generator().manual_seed(0))


@st.composite
def trees(draw) -> TreeShape:
    depth, branching = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    most = min(1 + TreeShape(depth, branching, 2).num_candidates, 24)
    return TreeShape(depth, branching, draw(st.integers(2, most)))


@st.composite
def decoders(draw) -> SpeculativeDecoder:
    target = tiny_target(draw(st.integers(0, 5)))
    drafter = tiny_drafter(target, draw(st.integers(0, 5)), std=draw(st.sampled_from([0.02, 0.25])))
    policy, capacity = draw(st.sampled_from(POLICIES)), draw(st.sampled_from([4, 7, 30, VOCAB_SIZE]))
    return SpeculativeDecoder(
        target,
        drafter,
        policy,
        draw(trees()),
        num_top=draw(st.sampled_from([1, 3, 16])),
        capacity=capacity,
        frequent_ids=FREQUENT,
    )


prompts = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=12)


@settings(max_examples=60)
@given(decoders(), prompts, st.integers(1, 40))
def test_greedy_output_is_autoregressive_output(decoder, prompt, max_new_tokens):
    plain = decoder.generate_autoregressive(prompt, max_new_tokens=max_new_tokens)
    result = decoder.generate(prompt, max_new_tokens=max_new_tokens)
    assert result.token_ids == plain.token_ids
    assert len(result.token_ids) == max_new_tokens
    assert result.stats.target_passes <= plain.stats.target_passes


@settings(max_examples=40)
@given(
    decoders(),
    prompts,
    st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([0.0, 0.3, 1.0, 3.0]),
            "top_k": st.sampled_from([0, 1, 5]),
            "top_p": st.sampled_from([1.0, 0.8]),
            "min_p": st.sampled_from([0.0, 0.05]),
            "repetition_penalty": st.sampled_from([1.0, 1.4]),
            "seed": st.integers(0, 99),
        }
    ),
)
def test_sampled_output_is_autoregressive_output_of_the_same_seed(decoder, prompt, sampling):
    plain = decoder.generate_autoregressive(prompt, max_new_tokens=25, **sampling)
    assert decoder.generate(prompt, max_new_tokens=25, **sampling).token_ids == plain.token_ids


@settings(max_examples=25)
@given(decoders(), prompts, st.data())
def test_eos_cuts_exactly_there(decoder, prompt, data):
    decoder.eos_ids = frozenset()
    full = decoder.generate(prompt, max_new_tokens=30).token_ids
    eos = data.draw(st.sampled_from(full))
    decoder.eos_ids = frozenset([eos])
    result = decoder.generate(prompt, max_new_tokens=30)
    assert result.token_ids == full[: full.index(eos) + 1]
    assert result.finish_reason == "eos"
    assert decoder.generate(prompt, max_new_tokens=30, ignore_eos=True).token_ids == full


@settings(max_examples=15)
@given(decoders(), prompts)
def test_stream_yields_the_tokens_of_generate(decoder, prompt):
    result = decoder.generate(prompt, max_new_tokens=20)
    pieces = list(decoder.stream(prompt, max_new_tokens=20))
    assert [token for piece in pieces for token in piece.token_ids] == result.token_ids
    assert decoder.last_stats.new_tokens == 20
    assert len(pieces) == result.stats.target_passes


def pair(policy: str = "in-context", **options) -> SpeculativeDecoder:
    target = tiny_target(seed=4)
    drafter = tiny_drafter(target, seed=2, std=0.02)
    return SpeculativeDecoder(target, drafter, policy, TreeShape(3, 3, 10), frequent_ids=FREQUENT, **options)


def test_the_drafter_is_right_now_and_then():
    """Guards the properties above: with a drafter that is never right they would hold for a broken walk too."""
    stats = pair("full").generate([1, 2, 3], max_new_tokens=60).stats
    assert stats.mean_accept_length > 1.2


def test_the_same_request_after_twenty_others_gives_the_same_tokens_and_stats():
    decoder, prompt = pair(capacity=20), [5, 8, 13]
    first = decoder.generate(prompt, max_new_tokens=30, temperature=0.9, seed=7)
    generator = torch.Generator().manual_seed(1)
    for length in range(1, 21):
        other = torch.randint(VOCAB_SIZE, (length,), generator=generator)
        decoder.generate(other, max_new_tokens=int(length), temperature=float(length % 2), seed=length)
    again = decoder.generate(prompt, max_new_tokens=30, temperature=0.9, seed=7)
    assert again.token_ids == first.token_ids
    for name in ("new_tokens", "target_passes", "steps", "step_tokens", "active_rows"):
        assert getattr(again.stats, name) == getattr(first.stats, name)


def test_a_stream_that_is_left_early_leaves_the_decoder_usable():
    decoder = pair()
    expected = decoder.generate([3, 1], max_new_tokens=20).token_ids
    next(iter(decoder.stream([9, 9, 9], max_new_tokens=50)))
    assert decoder.generate([3, 1], max_new_tokens=20).token_ids == expected


def test_a_stream_that_another_request_interrupted_says_so():
    decoder = pair()
    for interrupt in (decoder.generate, decoder.generate_autoregressive, decoder.with_vocab("full").generate):
        stream = decoder.stream([9, 9, 9], max_new_tokens=50)
        next(stream)
        interrupt([1, 2], max_new_tokens=3)
        with pytest.raises(RuntimeError, match="interrupted by another"):
            next(stream)


def test_a_tree_wider_than_the_context_drafts_what_there_is():
    target = tiny_target(seed=4)
    decoder = SpeculativeDecoder(target, tiny_drafter(target, 2, std=0.02), "in-context", (2, 61, 100), num_top=1)
    plain = decoder.generate_autoregressive([7], max_new_tokens=12)
    assert decoder.generate([7], max_new_tokens=12).token_ids == plain.token_ids


def test_the_default_tree_fits_a_small_vocabulary():
    assert pair_with_default_tree("static:4").tree == TreeShape(5, 4, 32)
    assert pair_with_default_tree("static:1").tree == TreeShape(5, 1, 6)


def pair_with_default_tree(policy: str) -> SpeculativeDecoder:
    target = tiny_target(seed=4)
    return SpeculativeDecoder(target, tiny_drafter(target, 2), policy, frequent_ids=FREQUENT)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 3}, {"repetition_penalty": 1.3}])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_logits_at_a_rejected_node_change_nothing(bad, sampling):
    decoder, num_bad = pair("full"), []
    judge = decoder.target.judge
    tokens = decoder.generate_autoregressive([1, 2, 3], max_new_tokens=20, **sampling).token_ids

    def judge_with_bad_nodes(tree, *arguments, **options):
        output = judge(tree, *arguments, **options)
        is_bad = ~torch.isin(tree.token_ids, torch.tensor(tokens))
        output.logits[is_bad], output.top_values[is_bad] = bad, bad
        num_bad.append(int(is_bad.sum()))
        return output

    decoder.target.judge = judge_with_bad_nodes
    assert decoder.generate([1, 2, 3], max_new_tokens=20, **sampling).token_ids == tokens
    assert sum(num_bad) > 9


def test_active_rows_never_exceed_the_capacity():
    stats = pair(capacity=9).generate(list(range(40)), max_new_tokens=30).stats
    assert 0 < stats.mean_active_vocab <= 9


def test_the_context_window_ends_the_output_with_reason_length():
    target = tiny_target(seed=1, window=20)
    decoder = SpeculativeDecoder(target, tiny_drafter(target, 1), "full", TreeShape(3, 3, 10))
    plain = decoder.generate_autoregressive([1] * 15, max_new_tokens=50)
    result = decoder.generate([1] * 15, max_new_tokens=50)
    assert (len(result.token_ids), result.finish_reason) == (5, "length")
    assert result.token_ids == plain.token_ids


def test_headless_probe_times_drafts_and_changes_nothing():
    decoder = pair()
    plain = decoder.generate([2, 4], max_new_tokens=20)
    probed = decoder.generate([2, 4], max_new_tokens=20, probe_headless=True)
    assert probed.token_ids == plain.token_ids
    assert probed.stats.step_tokens == plain.stats.step_tokens
    assert plain.stats.headless_draft_seconds == 0.0 < probed.stats.headless_draft_seconds


def test_candidates_are_the_best_ids_of_plain_logits():
    decoder = pair()
    result = decoder.generate_autoregressive([2, 4], max_new_tokens=3, return_candidates=True)
    sequence = [2, 4]
    for token, candidates in zip(result.token_ids, result.candidates, strict=True):
        best = decoder.target.model(torch.tensor([sequence])).logits[0, -1].detach().topk(8)
        assert candidates.ids == best.indices.tolist()
        assert candidates.logits == pytest.approx(best.values.tolist(), abs=1e-5)
        assert candidates.ids[0] == token
        sequence.append(token)


def test_with_vocab_shares_the_modules_and_the_tree():
    decoder = pair()
    other = decoder.with_vocab("static:7")
    assert other.target is decoder.target
    assert other.tree == decoder.tree
    assert other.vocab.name == "static-7"
    assert other.generate([1, 2], max_new_tokens=9).token_ids == decoder.generate([1, 2], max_new_tokens=9).token_ids


def test_auto_tree_picks_a_shape_that_decodes_exactly():
    target = tiny_target(seed=4)
    decoder = SpeculativeDecoder(target, tiny_drafter(target, 2, std=0.02), "in-context", "auto")
    assert decoder.tree == decoder.tree.validated()
    result = decoder.generate([1, 2, 3], max_new_tokens=20)
    assert result.stats.tree == decoder.tree
    assert result.token_ids == decoder.generate_autoregressive([1, 2, 3], max_new_tokens=20).token_ids


def test_loaded_modules_go_into_from_pretrained():
    model = tiny_model(seed=3)
    target = tiny_target(seed=3)
    decoder = SpeculativeDecoder.from_pretrained(model, tiny_drafter(target, 1), vocab="full", tree=(2, 2, 4))
    assert decoder.target.model is model
    assert decoder.tree == TreeShape(2, 2, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_ids": []}, ValueError, "input_ids must hold at least one token, got an empty prompt"),
        ({"input_ids": [1, 61]}, ValueError, r"input_ids must lie in \[0, 61\), got 61"),
        ({"input_ids": [-1, 3]}, ValueError, r"input_ids must lie in \[0, 61\), got -1"),
        ({"input_ids": [1] * 128}, ValueError, "shorter than the context window of 128, got 128 tokens"),
        ({"input_ids": torch.ones(2, 3, dtype=torch.int64)}, NotImplementedError, "one sequence, got a batch of 2"),
        ({"input_ids": [1.5, 2.0]}, TypeError, "input_ids must be integers, got torch.float32"),
        ({"input_ids": [True, False]}, TypeError, "input_ids must be integers, got torch.bool"),
        ({"input_ids": torch.ones(3)}, TypeError, "input_ids must be integers, got torch.float32"),
        ({"input_ids": torch.ones(1, 1, 3, dtype=torch.int64)}, ValueError, r"got shape \(1, 1, 3\)"),
        ({"input_ids": None}, TypeError, r"input_ids must be integers of 64 bits, \[P\] or \[1, P\], got None"),
        ({"input_ids": [None]}, TypeError, r"input_ids must be integers .*, got \[None\]"),
        ({"input_ids": {1: 2}}, TypeError, "input_ids must be integers .*, got {1: 2}"),
        ({"input_ids": "abc"}, TypeError, r"integers .*, got 'abc': decoder.encode\(text\) makes them"),
        ({"input_ids": ["1", "2"]}, TypeError, r"input_ids must be integers .*, got \['1', '2'\]"),
        ({"input_ids": [1, 2**63]}, ValueError, r"input_ids must be integers of 64 bits, .* got \[1, 92"),
        ({"input_ids": [[1], [2, 3]]}, ValueError, r"or \[1, P\], got \[\[1\], \[2, 3\]\]"),
        ({"input_ids": [[1, 2], 3]}, ValueError, r"or \[1, P\], got \[\[1, 2\], 3\]"),
        ({"input_ids": [1], "max_new_tokens": 0}, ValueError, "max_new_tokens must be at least 1, got 0"),
        ({"input_ids": [1], "max_new_tokens": -5}, ValueError, "max_new_tokens must be at least 1, got -5"),
        ({"input_ids": [1], "max_new_tokens": 2.5}, TypeError, "max_new_tokens must be an int, got 2.5"),
        ({"input_ids": [1], "temperature": -1.0}, ValueError, "temperature must be at least 0, got -1.0"),
        ({"input_ids": [1], "stop_strings": ["x"]}, ValueError, "stop_strings needs a tokenizer, got none"),
        ({"input_ids": [1], "stop": ["x"]}, TypeError, "among max_new_tokens, .*, got 'stop': did .* 'stop_strings'"),
        ({"input_ids": [1], "max_tokens": 3}, TypeError, "got 'max_tokens': did you mean 'max_new_tokens'"),
    ],
)
@pytest.mark.parametrize("method", ["generate", "stream", "generate_autoregressive"])
def test_bad_requests_name_the_argument(method, arguments, error, message):
    with pytest.raises(error, match=message):
        getattr(pair(), method)(**arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"vocab": "fancy"}, ValueError, "vocab must be 'full', 'in-context' .*, got 'fancy'"),
        ({"vocab": "static:100"}, ValueError, "the list has 61"),
        ({"tree": (2, 9, 20), "capacity": 8}, ValueError, "branching must be at most 8, the rows of the vocabulary"),
        ({"tree": 5}, ValueError, "tree must be 'auto', None or .*, got 5"),
        ({"tree": "wide"}, ValueError, "tree must be 'auto', None or .*, got 'wide'"),
        ({"num_top": 62}, ValueError, r"num_top must be in \[1, 61\], got 62"),
        ({"num_top": 3.5}, TypeError, "num_top must be an int, got 3.5 of type float"),
        ({"num_top": True}, TypeError, "num_top must be an int, got True of type bool"),
        ({"capacity": "5"}, TypeError, "capacity must be an int, got '5' of type str"),
        ({"capacity": 5.5}, TypeError, "capacity must be an int, got 5.5 of type float"),
        ({"num_top": 0}, ValueError, r"num_top must be in \[1, 61\], got 0"),
        ({"capacity": 0}, ValueError, "capacity must be between 1 and vocab_size 61, got 0"),
    ],
)
def test_bad_options_name_the_argument(options, error, message):
    target = tiny_target(seed=1)
    with pytest.raises(error, match=message):
        SpeculativeDecoder(target, tiny_drafter(target, 1), frequent_ids=FREQUENT, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary": "full"}, "options must be among vocab, tree, .*, got 'vocabulary': did you mean 'vocab'"),
        ({"vocab": "full", "drafter": 1}, "options must be among .*, dtype, .*, got 'drafter'$"),
        ({"dtypes": "float32"}, "got 'dtypes': did you mean 'dtype'"),
    ],
)
def test_an_option_that_there_is_not_is_refused_before_anything_is_loaded(options, message):
    for build in (partial(SpeculativeDecoder.from_pretrained, "no/target", "no/draft"), SpeculativeDecoder.from_demo):
        with pytest.raises(TypeError, match=message):
            build(**options)


def test_a_subclass_may_take_options_of_its_own():
    class Named(SpeculativeDecoder):
        def __init__(self, target, drafter, label, vocab="full", tokenizer=None):
            super().__init__(target, drafter, vocab)
            self.label = label

    class Open(SpeculativeDecoder):
        def __init__(self, *args, **options):
            self.label = options.pop("label")
            super().__init__(*args, **options)

    model, drafter = tiny_model(seed=3), tiny_drafter(tiny_target(seed=3), 1)
    for kind in (Named, Open):
        assert kind.from_pretrained(model, drafter, label="mine").label == "mine"
    with pytest.raises(TypeError, match="options must be among label, vocab, tokenizer, .*, got 'tree'"):
        Named.from_pretrained(model, drafter, label="mine", tree=None)


def test_a_drafter_of_another_dtype_or_kind_is_refused():
    target = tiny_target(seed=1)
    with pytest.raises(ValueError, match="target's dtype torch.float64, got torch.float32"):
        SpeculativeDecoder(target, tiny_drafter(target, 1).float(), "full")
    with pytest.raises(TypeError, match="draft must be a path, a hub id, a model or a Drafter, got NoneType"):
        SpeculativeDecoder.from_pretrained(tiny_model(1), None)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["generate", "generate_autoregressive"])
def test_non_finite_target_logits_are_an_error_that_names_the_position(method, bad):
    decoder = pair()
    tokens = decoder.generate([1, 2, 3], max_new_tokens=12).token_ids
    head = decoder.target.head
    calls = []

    def failing_head(features):
        logits = head(features)
        calls.append(logits)
        return torch.full_like(logits, bad) if len(calls) > 30 else logits

    decoder.target.head = failing_head
    with pytest.raises(ValueError, match=r"target logits must be finite, got NaN or infinity after position \d+"):
        getattr(decoder, method)([1, 2, 3], max_new_tokens=100)
    del decoder.target.head
    assert decoder.generate([1, 2, 3], max_new_tokens=12).token_ids == tokens
