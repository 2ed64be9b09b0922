"""Cuts in plain text: the ids of the pieces are those of the whole, by tokenizers of several kinds."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from nanospec.calibration.line_cuts import NO_CUTS, LineCuts, find_line_cuts
from nanospec.calibration.text_source import _joined_lines
from nanospec.checkpoints.target import load_tokenizer
from nanospec.demo import TARGET_DIRECTORY

TEXT = ["a b\n\nb 1.\n\n  ab\r\n\r\nba\n\n\nab (b)\n", "a\n\na\n\nb\n \nb\t\n  a"] * 9
EVERYWHERE = LineCuts(True, True)


def trained(normalizer, pre_tokenizer) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    alphabet = [*pre_tokenizers.ByteLevel.alphabet(), "\u2581", "\n"]
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    return tokenizer


def byte_level() -> Tokenizer:
    """As GPT-2."""
    tokenizer = trained(None, pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def blank_in_front() -> Tokenizer:
    """As Llama-2."""
    return trained(normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]), None)


KINDS = {
    "demo": (lambda: load_tokenizer(TARGET_DIRECTORY).backend_tokenizer, EVERYWHERE),
    "byte level": (byte_level, LineCuts(True, False)),
    "blank in front": (blank_in_front, NO_CUTS),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    make, expected = KINDS[request.param]
    tokenizer = make()
    return (lambda text: tokenizer.encode(text, add_special_tokens=False).ids), expected


def test_it_is_found_where_a_tokenizer_lets_text_be_cut(kind):
    ids_of, expected = kind
    assert find_line_cuts(ids_of) == expected


@settings(max_examples=40)
@given(text=st.text("ab1.\u00e9 \n\r\t{", max_size=30))
def test_ids_of_the_pieces_are_the_ids_of_the_text(kind, text):
    ids_of, _ = kind
    pieces = list(_joined_lines(io.BytesIO(text.encode()), find_line_cuts(ids_of)))
    assert "".join(pieces) == text
    assert [token_id for piece in pieces for token_id in ids_of(piece)] == [*ids_of(text)]


def test_byte_level_ids_after_blanks_depend_on_what_follows():
    """Why the second kind of cut is none there; \u010a stands for a line break."""
    tokenizer = byte_level()
    assert tokenizer.encode("a\n\nb\n").tokens == ["a", "\u010a", "\u010a", "b", "\u010a"]
    assert tokenizer.encode("a\n\n").tokens == ["a", "\u010a\u010a"]


@pytest.mark.parametrize(
    ("cuts", "expected"),
    [
        (EVERYWHERE, ["a\n", "b\n\n", "c\n d\n", "e \n", "f"]),
        (LineCuts(True, False), ["a\n", "b\n\nc\n d\n", "e \nf"]),
        (LineCuts(False, True), ["a\nb\n\n", "c\n d\ne \n", "f"]),
        (NO_CUTS, ["a\nb\n\nc\n d\ne \nf"]),
    ],
)
def test_pieces_end_where_they_may(cuts, expected):
    assert list(_joined_lines(io.BytesIO(b"a\nb\n\nc\n d\ne \nf"), cuts)) == expected


def test_pieces_that_may_not_be_cut_end_with_a_line_when_they_are_long(monkeypatch):
    monkeypatch.setattr("nanospec.calibration.text_source.MAX_LINE", 5)
    assert list(_joined_lines(io.BytesIO(b"ab\nc\nd\n e\nfg"), NO_CUTS)) == ["ab\nc\n", "d\n e\n", "fg"]
