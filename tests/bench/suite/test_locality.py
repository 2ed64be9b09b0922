from __future__ import annotations

import torch

from bench.suite.locality import watch
from nanospec.decode import SpeculativeDecoder
from tests.tiny_pair import VOCAB_SIZE, tiny_drafter, tiny_target

NUM_TOKENS = 40
PROMPT = torch.tensor([[3, 1, 4, 1, 5]])
TARGET = tiny_target(7)


def watched(vocab, **options):
    return watch(SpeculativeDecoder(TARGET, tiny_drafter(TARGET, 2), vocab, (3, 3, 8), **options), PROMPT, NUM_TOKENS)


def test_every_token_is_a_hit_where_the_vocabulary_holds_everything():
    found = watched("full")
    assert found["vocab_size"] == VOCAB_SIZE
    assert all(step["num_active"] == step["num_entered"] == VOCAB_SIZE for step in found["steps"])
    assert all(is_hit and place is not None for step in found["steps"] for place, is_hit in step["tokens"])


def test_a_token_is_a_hit_if_it_has_entered_and_a_miss_enters_with_its_step():
    found = watched("in-context", num_top=1)
    entered_before = None
    misses = 0
    for step in found["steps"]:
        for place, is_hit in step["tokens"]:
            assert is_hit == (place is not None and place < (entered_before or VOCAB_SIZE))
            misses += not is_hit
        assert step["num_active"] <= step["num_entered"] <= VOCAB_SIZE
        assert entered_before is None or entered_before == step["num_active"]  # nothing leaves below the capacity
        entered_before = step["num_entered"]
    assert sum(len(step["tokens"]) for step in found["steps"]) >= NUM_TOKENS - 1
    assert misses > 0, "a vocabulary of the context alone lacks what is new"


def test_an_id_that_left_the_vocabulary_is_a_miss_that_has_entered_before():
    found = watched("in-context", num_top=1, capacity=6)
    assert all(step["num_active"] <= 6 for step in found["steps"])
    tokens = [token for step in found["steps"] for token in step["tokens"]]
    assert any(place is not None and not is_hit for place, is_hit in tokens)
