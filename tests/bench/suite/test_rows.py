from __future__ import annotations

import pytest

from bench.suite.rows import BY_NAME, ROWS, VLLM_ROWS, choose_rows, full_row_of, vocab_of

OPTIONS = ("eagle3", "medusa", "assistant", "router", "trim-list", "vllm")
NOTHING = dict.fromkeys(OPTIONS)
EVERYTHING = {name: f"{name}.file" for name in OPTIONS}


class Decoder:
    """Its pair has so many frequent ids."""

    def __init__(self, num_frequent_ids):
        self.num_frequent_ids = num_frequent_ids

    def with_vocab(self, vocab):
        kind, _, detail = vocab.partition(":")
        if kind == "static" and int(detail) > self.num_frequent_ids:
            raise ValueError(f"vocab {vocab!r} needs as many frequent ids")


def names(rows):
    return [row.name for row in rows]


def test_with_everything_given_every_default_row_takes_part():
    chosen, left_out = choose_rows([], EVERYTHING, Decoder(32768))
    assert names(chosen) == [row.name for row in ROWS if row.is_default]
    assert left_out == []


def test_a_row_without_its_file_or_list_is_left_out_and_says_why():
    chosen, left_out = choose_rows([], NOTHING, Decoder(4096))
    reasons = dict(left_out)
    assert reasons["eagle3-full"] == "--eagle3 was not given"
    assert reasons["trimmed"] == "--trim-list was not given"
    assert [reasons[name] for name in VLLM_ROWS] == ["--vllm was not given"] * 3
    assert reasons["static-32768"] == "vocab 'static:32768' needs as many frequent ids"
    defaults = {row.name for row in ROWS if row.is_default}
    assert set(names(chosen)) == defaults - set(reasons)
    assert set(reasons) < defaults


def test_rows_may_be_named_and_plain_decoding_is_always_there():
    chosen, _ = choose_rows(["in-context", "full"], NOTHING, Decoder(0))
    assert names(chosen) == ["autoregressive", "full", "in-context"]


def test_a_named_row_that_cannot_take_part_is_an_error():
    with pytest.raises(ValueError, match="row routed cannot take part: --router was not given"):
        choose_rows(["routed"], NOTHING, Decoder(0))
    with pytest.raises(ValueError, match="row vllm cannot take part: --vllm was not given"):
        choose_rows(["vllm"], NOTHING, Decoder(0))
    with pytest.raises(ValueError, match="row must be one of autoregressive, .*, got fast"):
        choose_rows(["fast"], NOTHING, Decoder(0))


def test_a_row_that_has_its_option_may_lack_something_else():
    reasons = {"vllm-eagle": "no such draft", "vllm": "no such dtype"}
    chosen, left_out = choose_rows([], EVERYTHING, Decoder(32768), reasons)
    assert dict(left_out) == reasons
    assert "vllm-nanospec" in names(chosen)
    with pytest.raises(ValueError, match="row vllm-eagle cannot take part: no such draft"):
        choose_rows(["vllm-eagle"], EVERYTHING, Decoder(0), reasons)


def test_accept_lengths_are_relative_to_the_same_drafter():
    assert full_row_of(BY_NAME["hybrid"]) == full_row_of(BY_NAME["full"]) == "full"
    assert full_row_of(BY_NAME["eagle3-in-context"]) == "eagle3-full"
    assert full_row_of(BY_NAME["assistant-in-context"]) == "assistant-full"
    assert full_row_of(BY_NAME["vllm-nanospec"]) == "vllm-eagle"
    assert full_row_of(BY_NAME["transformers-assisted"]) is full_row_of(BY_NAME["vllm"]) is None


def test_a_file_is_part_of_the_vocabulary_that_needs_it():
    assert vocab_of(BY_NAME["routed"], EVERYTHING) == "routed:router.file"
    assert vocab_of(BY_NAME["trimmed"], EVERYTHING) == "static:trim-list.file"
    assert vocab_of(BY_NAME["eagle3-full"], EVERYTHING) == "full"
