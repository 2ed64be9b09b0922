"""Where an output ends: token ids and text are cut at the same place."""

from __future__ import annotations

import pytest
import torch

from nanospec.request import Request
from nanospec.result import OutputCutter
from nanospec.text_stream import TextStream


class LetterTokenizer:
    """Token 1 is a, 2 is b, ...; 0 is the end of the sequence."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(chr(96 + token) for token in ids if token)


def cut(steps, *, max_new_tokens=50, stop_strings=(), eos_ids=(0,)):
    request = Request(
        torch.ones(1, 1, dtype=torch.int64), max_new_tokens, stop_strings=stop_strings, eos_ids=frozenset(eos_ids)
    )
    cutter = OutputCutter(request, TextStream(LetterTokenizer(), stop_strings))
    pieces = list(cutter.pieces(steps))
    assert "".join(piece.text for piece in pieces) == cutter.text
    assert [token for piece in pieces for token in piece.token_ids] == cutter.token_ids
    return cutter


STEPS = [[1], [2, 3, 4], [5, 0, 6], [7, 8]]


def test_eos_inside_a_step_cuts_behind_itself():
    cutter = cut(STEPS)
    assert (cutter.token_ids, cutter.text, cutter.finish_reason) == ([1, 2, 3, 4, 5, 0], "abcde", "eos")


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5])
def test_the_budget_cuts_inside_a_step(most):
    cutter = cut(STEPS, max_new_tokens=most)
    assert (cutter.token_ids, cutter.text, cutter.finish_reason) == ([1, 2, 3, 4, 5][:most], "abcde"[:most], "length")


def test_eos_as_the_last_token_of_the_budget_is_eos():
    assert cut(STEPS, max_new_tokens=6).finish_reason == "eos"


@pytest.mark.parametrize(
    ("stop", "token_ids", "text"),
    [("b", [1, 2], "a"), ("cd", [1, 2, 3, 4], "ab"), ("ab", [1, 2], ""), ("de", [1, 2, 3, 4, 5], "abc")],
)
def test_a_stop_string_cuts_text_before_it_and_tokens_behind_it(stop, token_ids, text):
    cutter = cut(STEPS, stop_strings=(stop,))
    assert (cutter.token_ids, cutter.text, cutter.finish_reason) == (token_ids, text, "stop_string")


def test_text_held_back_for_a_stop_string_comes_with_the_end():
    cutter = cut([[1], [2, 3]], max_new_tokens=3, stop_strings=("cz",))
    assert cutter.text == "abc"


def test_nothing_is_asked_of_the_loop_after_the_end():
    def steps():
        yield [1]
        yield [0]
        raise AssertionError("the request had ended")

    assert cut(steps()).finish_reason == "eos"
