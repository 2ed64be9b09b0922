from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from nanospec.text_stream import MAX_PENDING_TOKENS, TextStream

SPECIAL = "<end>"


def byte_level_tokenizer() -> Tokenizer:
    """Every byte is a token, "lo", " w" and a space with the first byte of an emoji are tokens besides."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    emoji_start = byte_letter(0xF0)
    merges = [("l", "o"), ("Ġ", "w"), ("Ġ", emoji_start)]
    tokens = alphabet + [a + b for a, b in merges]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([SPECIAL])
    return tokenizer


def byte_letter(byte: int) -> str:
    """The letter that stands for a byte in byte-level vocabularies: printable ones themselves, others from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return chr(byte) if byte in printable else chr(256 + others.index(byte))


def sentencepiece_like_tokenizer() -> Tokenizer:
    """Words that carry their space, bytes for the rest; the first space of a decoded list is dropped."""
    tokens = ["▁Hello", "▁world", "▁", "!", SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, [], byte_fallback=True))
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    tokenizer.add_special_tokens([SPECIAL])
    return tokenizer


BYTE_LEVEL = byte_level_tokenizer()
SENTENCEPIECE = sentencepiece_like_tokenizer()


def ids_of(text: str) -> list[int]:
    return BYTE_LEVEL.encode(text).ids


def run(stream: TextStream, chunks: list[list[int]]) -> list[str]:
    return [*(stream.push(chunk) for chunk in chunks), stream.finish()]


def cut_up(data: st.DataObject, token_ids: list[int]) -> list[list[int]]:
    """The tokens as pushes of random sizes."""
    chunks, start = [], 0
    while start < len(token_ids):
        size = data.draw(st.integers(1, 5))
        chunks.append(token_ids[start : start + size])
        start += size
    return chunks


texts = st.text(st.sampled_from("ab lo w\n\u00e9\u4f60\U0001f600\ufffd"), max_size=25)


@given(text=texts, data=st.data())
@settings(max_examples=100)
def test_pieces_join_to_the_text_and_hold_no_half_character(text, data):
    stream = TextStream(BYTE_LEVEL)
    pieces = run(stream, cut_up(data, ids_of(text)))
    assert "".join(pieces) == text == stream.text
    assert "\ufffd" in text or all("\ufffd" not in piece for piece in pieces)


@given(data=st.data(), token_ids=st.lists(st.integers(0, 255), max_size=40))
@settings(max_examples=100)
def test_bytes_that_are_no_characters_come_out_as_they_decode(data, token_ids):
    assert "".join(run(TextStream(BYTE_LEVEL), cut_up(data, token_ids))) == BYTE_LEVEL.decode(token_ids)


def test_endless_invalid_bytes_are_not_held_for_ever():
    [broken] = ids_of("\u4f60")[:1]
    stream = TextStream(BYTE_LEVEL)
    given_out = [stream.push([broken]) for _ in range(4 * MAX_PENDING_TOKENS)]
    assert len("".join(given_out)) >= 2 * MAX_PENDING_TOKENS
    assert "".join(run(stream, [ids_of("\u4f60")]))[-1] == "\u4f60"
    assert stream.text == "\ufffd" * (4 * MAX_PENDING_TOKENS) + "\u4f60"


@pytest.mark.parametrize("num_broken", range(MAX_PENDING_TOKENS - 4, MAX_PENDING_TOKENS + 2))
def test_a_character_after_many_invalid_bytes_comes_out_whole(num_broken):
    emoji = BYTE_LEVEL.encode("\U0001f600").ids
    token_ids = emoji[:1] * num_broken + emoji + ids_of("!")
    pieces = run(TextStream(BYTE_LEVEL), [[token] for token in token_ids])
    assert "".join(pieces) == "\ufffd" * num_broken + "\U0001f600!"


def test_text_between_invalid_bytes_is_given_out_once():
    space_and_open_byte = ids_of(" \U0001f600")[:1]
    token_ids = ids_of("\u4f60")[:1] * (MAX_PENDING_TOKENS - 2) + space_and_open_byte * 8 + ids_of("!")
    assert "".join(run(TextStream(BYTE_LEVEL), [[token] for token in token_ids])) == BYTE_LEVEL.decode(token_ids)


def test_a_character_appears_with_its_last_byte():
    stream = TextStream(BYTE_LEVEL)
    assert [stream.push([token]) for token in ids_of("\u4f60!")] == ["", "", "\u4f60", "!"]


@given(data=st.data())
@settings(max_examples=60)
def test_spaces_between_tokens_come_out_as_in_the_whole_text(data):
    words = st.sampled_from(["▁Hello", "▁world", "▁", "!", "é", "\u4f60", SPECIAL])
    token_ids: list[int] = []
    for word in data.draw(st.lists(words, max_size=12)):
        known = SENTENCEPIECE.token_to_id(word)
        raw = [SENTENCEPIECE.token_to_id(f"<0x{byte:02X}>") for byte in word.encode()]
        token_ids += raw if known is None else [known]
    pieces = run(TextStream(SENTENCEPIECE), cut_up(data, token_ids))
    assert "".join(pieces) == SENTENCEPIECE.decode(token_ids)


def test_a_space_survives_a_special_token_pushed_alone():
    words = ["▁Hello", SPECIAL, SPECIAL, "▁world"]
    pieces = run(TextStream(SENTENCEPIECE), [[SENTENCEPIECE.token_to_id(word)] for word in words])
    assert pieces == ["Hello", "", "", " world", ""]


def test_special_tokens_are_skipped_unless_asked_for():
    token_ids = [*ids_of("a"), BYTE_LEVEL.token_to_id(SPECIAL), *ids_of("b")]
    assert "".join(run(TextStream(BYTE_LEVEL), [token_ids])) == "ab"
    assert "".join(run(TextStream(BYTE_LEVEL, skip_special_tokens=False), [token_ids])) == f"a{SPECIAL}b"


def test_a_stop_string_over_several_tokens_cuts_inside_the_last_one():
    # Tokens h e l lo " w" o ...: the stop string "o " begins inside "lo" and ends inside " w".
    token_ids = ids_of("hello world")
    stream = TextStream(BYTE_LEVEL, ["o "])
    assert [stream.push([token]) for token in token_ids[:3]] == ["h", "e", "l"]
    assert stream.push(token_ids[3:4]) == "l"  # the "o" may begin the stop string
    assert not stream.stopped
    assert stream.push(token_ids[4:]) == ""
    assert stream.stopped
    assert stream.stop_index == 5
    assert stream.text == "hell"
    assert stream.push(ids_of("more")) == stream.finish() == ""
    assert stream.stop_index == 5


def test_text_that_only_looked_like_a_stop_string_is_given_out():
    stream = TextStream(BYTE_LEVEL, ["aab"])
    assert [stream.push([token]) for token in ids_of("aaac")] == ["", "", "a", "aac"]
    assert stream.push(ids_of("aa")) == ""
    assert stream.finish() == "aa"
    assert stream.stop_index is None


def test_a_stop_string_counts_although_half_a_character_follows_in_its_token():
    # The token after "a" holds a space and the first byte of the emoji.
    stream = TextStream(BYTE_LEVEL, [" "])
    assert stream.push(ids_of("a \U0001f600")) == "a"
    assert stream.stop_index == 2


def test_of_several_stop_strings_the_earliest_match_wins():
    [token] = ids_of(" w")
    stream = TextStream(BYTE_LEVEL, ["w", " w"])
    assert stream.push([*ids_of("a"), token]) == "a"
    assert stream.stop_index == 2
    late = TextStream(BYTE_LEVEL, ["zz", "b", "xyz"])
    assert late.push(ids_of("aabxyzz")) == "aa"
    assert late.stop_index == 3


@given(
    text=texts, stops=st.lists(st.text(st.sampled_from("ab lo"), min_size=1, max_size=3), max_size=3), data=st.data()
)
@settings(max_examples=100)
def test_the_text_ends_before_the_match_in_the_shortest_prefix_that_has_one(text, stops, data):
    token_ids = ids_of(text)
    stream = TextStream(BYTE_LEVEL, stops)
    pieces = run(stream, cut_up(data, token_ids))
    expected, stop_index = text, None
    for count in range(1, len(token_ids) + 1):
        known = BYTE_LEVEL.decode(token_ids[:count])
        starts = [known.find(stop) for stop in stops if stop in known]
        if starts:
            expected, stop_index = known[: min(starts)], count
            break
    assert ("".join(pieces), stream.text) == (expected, expected)
    assert stream.stop_index == stop_index


def test_wrong_stop_strings_are_refused():
    with pytest.raises(ValueError, match="stop_strings must not hold an empty string"):
        TextStream(BYTE_LEVEL, ["a", ""])
    with pytest.raises(TypeError, match="stop_strings must be a sequence of strings"):
        TextStream(BYTE_LEVEL, "stop")
