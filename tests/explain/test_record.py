"""Where tokens came from, against plain decoding and against what the trees and vocabularies must hold."""

from __future__ import annotations

import pytest

from nanospec import SpeculativeDecoder
from nanospec.drafters.prompt_lookup import PromptLookupDrafter
from nanospec.explain import explain
from tests.byte_tokenizer import byte_tokenizer
from tests.tiny_pair import tiny_drafter, tiny_target

VOCAB_SIZE = 258  # bytes and two special tokens
PROMPT = [5, 9, 5, 9, 7]


def decoder(vocab: str = "in-context", **options) -> SpeculativeDecoder:
    target = tiny_target(4, VOCAB_SIZE)
    return SpeculativeDecoder(
        target, tiny_drafter(target, 2, std=0.02), vocab, (3, 3, 10), tokenizer=byte_tokenizer(), **options
    )


@pytest.mark.parametrize("vocab", ["full", "in-context", "in-context+prior"])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 3}], ids=["greedy", "T=1"])
def test_tokens_and_text_are_those_of_generate(vocab, sampling):
    pair = decoder(vocab)
    expected = pair.generate(PROMPT, max_new_tokens=40, **sampling)
    explanation = explain(pair, PROMPT, 40, **sampling)
    assert [token.token_id for token in explanation.tokens] == expected.token_ids
    assert (explanation.text, explanation.finish_reason) == (expected.text, expected.finish_reason)
    assert len(explanation.steps) == expected.stats.steps


def test_drafted_tokens_lie_on_the_accepted_path_and_are_drawable():
    explanation = explain(decoder(), PROMPT, 60)
    assert explanation.tokens[0].origin == "prompt"
    assert {token.origin for token in explanation.tokens} == {"prompt", "drafted", "bonus"}
    for token in explanation.tokens[1:]:
        path = [node for node in explanation.steps[token.step].nodes if node.accepted]
        if token.origin == "drafted":
            assert token.drawable
            assert (path[token.depth].token_id, path[token.depth].depth) == (token.token_id, token.depth)
        else:
            assert token.depth == len(path)


def test_a_miss_is_a_bonus_token_that_the_vocabulary_lacked():
    full, few = explain(decoder("full"), PROMPT, 40), explain(decoder("in-context", capacity=3, num_top=1), PROMPT, 40)
    assert full.num_misses == 0
    assert {step.num_active for step in full.steps} == {VOCAB_SIZE}
    assert few.num_misses == sum(token.is_miss for token in few.tokens) > 0
    assert {step.num_active for step in few.steps} == {3}


def test_a_drafter_without_a_vocabulary_misses_nothing():
    drafter = PromptLookupDrafter()
    explanation = explain(
        SpeculativeDecoder(tiny_target(4, VOCAB_SIZE), drafter, "full", (3, 3, 10), tokenizer=byte_tokenizer()),
        PROMPT,
        40,
    )
    assert {token.origin for token in explanation.tokens} >= {"prompt", "bonus"}
    assert (explanation.has_vocab, explanation.num_misses) == (False, 0)


def test_nodes_name_their_parents():
    for step in explain(decoder(), PROMPT, 30).steps:
        assert step.nodes[0].parent == 0
        for place, node in enumerate(step.nodes[1:], start=1):
            assert node.parent < place
            assert node.depth == step.nodes[node.parent].depth + 1
            assert node.score <= step.nodes[node.parent].score


def test_a_decoder_without_a_tokenizer_is_refused():
    target = tiny_target(4, VOCAB_SIZE)
    with pytest.raises(ValueError, match="decoder must have a tokenizer"):
        explain(SpeculativeDecoder(target, tiny_drafter(target, 2), "full"), PROMPT)
