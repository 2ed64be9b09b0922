from __future__ import annotations

from types import SimpleNamespace

import torch

from nanospec.coverage.documents import Document, TextDocument, as_tokens, draw_cuts

ROOM = 12


class FakeTokenizer:
    """A byte is a token; prompts are framed."""

    chat_template = "framed"

    def apply_chat_template(self, messages, **settings):
        return f"<{messages[0]['content']}>"

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": list(text.encode())}


def fake_decoder(generated=()):
    return SimpleNamespace(
        tokenizer=FakeTokenizer(),
        target=SimpleNamespace(context_window=ROOM + 5, device=torch.device("cpu")),
        tree=SimpleNamespace(depth=3),
        generate=lambda prompt, **settings: SimpleNamespace(token_ids=[*generated, settings["seed"]]),
    )


def test_a_response_follows_the_framed_prompt_up_to_the_room_for_a_tree():
    document = as_tokens(fake_decoder(), TextDocument("ab", "0123456789", "task"), 8, 0)
    assert bytes(document.token_ids[0].tolist()) == b"<ab>01234567"
    assert document.first == 4


def test_an_untold_prompt_leaves_its_frame():
    assert as_tokens(fake_decoder(), TextDocument("", "01", "task"), 8, 0).token_ids.tolist() == [list(b"<>01")]


def test_a_missing_response_is_generated_with_the_seed():
    document = as_tokens(fake_decoder([65]), TextDocument("ab", None, "task"), 8, 7)
    assert document.token_ids[0, document.first :].tolist() == [65, 7]


def test_a_prompt_without_room_behind_it_is_none():
    assert as_tokens(fake_decoder(), TextDocument("a" * (ROOM - 2), "0", "task"), 8, 0) is None
    assert as_tokens(fake_decoder(), TextDocument("a" * (ROOM - 3), "0", "task"), 8, 0) is not None


def test_cuts_are_distinct_places_of_the_response_and_repeat_with_the_seed():
    document = Document(torch.zeros(1, 20, dtype=torch.int64), 15)
    assert draw_cuts(document, 9, [0, 1]) == [15, 16, 17, 18, 19]
    drawn = {tuple(draw_cuts(document, 2, [0, number])) for number in range(30)}
    assert len(drawn) > 3
    assert all(15 <= low < high <= 19 for low, high in drawn)
    assert draw_cuts(document, 2, [0, 1]) == draw_cuts(document, 2, [0, 1])


def test_no_cut_leaves_a_text_empty():
    assert draw_cuts(Document(torch.zeros(1, 3, dtype=torch.int64), 0), 9, [0]) == [1, 2]
