"""The page: whole, safe whatever the tokens say, readable in its colours; test_browser.py looks at it drawn."""

from __future__ import annotations

import json
import re

import pytest

from nanospec.explain import page_of
from nanospec.explain.page import DEPTH_COLOURS
from tests.explain.explanations import explanation, of_tokens

EVIL = "</script><img src=x onerror=alert(1)>{{STEPS}}<!--"
READABLE = 4.5  # contrast of normal text in WCAG 2.2, level AA


def test_every_token_says_where_it_came_from():
    page = page_of(explanation())
    titles = re.findall(r'title="([^"]*)"', page)
    assert titles == [
        "first token, from the prompt pass",
        "step 1: drafted, accepted at depth 1",
        "step 1: bonus token of the target, not in the draft vocabulary (a miss)",
        "step 2: bonus token of the target, within a character",
    ]
    assert "4 tokens in 2 steps: 1.50 per target pass" in page


def test_the_page_needs_nothing_else():
    assert not re.findall(r"(?:src|href)\s*=|@import|url\(", page_of(explanation()))


def test_text_cannot_leave_its_place():
    page = page_of(explanation(EVIL))
    assert "<img" not in page
    assert page.count("</script>") == 2
    inside = re.search(r'<script type="application/json" id="steps">(.*?)</script>', page, re.DOTALL)
    assert inside is not None
    assert json.loads(inside[1])[0] == {
        "active": 17,
        "nodes": [[EVIL, 0, 0.0, 1], [EVIL, 0, -0.5, 1], ["no", 0, -2.0, 0], ["never", 2, -3.0, 0]],
    }


def test_a_drafter_without_a_vocabulary_has_no_misses_to_count():
    assert "1 miss" in page_of(explanation())
    page = page_of(explanation(has_vocab=False))
    assert "1 miss" not in page
    assert "ids on average" not in page


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        (".\n\n", '.<i data-sign="↵↵"></i></span>\n\n'),
        ("\n", '><i data-sign="↵"></i></span>\n'),
        ("a\n b", 'a<i data-sign="↵"></i>\n b</span>'),
        ("\t", '><i data-sign="→"></i>\t</span>'),
        (" a", "<wbr><span "),
        ("", '><i data-sign="⋯"></i></span>'),
    ],
)
def test_what_cannot_be_seen_has_a_sign_beside_it(text, drawn):
    assert drawn in page_of(of_tokens([text]))


def test_text_reads_on_every_depth_and_depths_grow_darker():
    grounds = [_luminance(ground) for ground, _ in DEPTH_COLOURS]
    assert grounds == sorted(grounds, reverse=True)
    for ground, (_, ink) in zip(grounds, DEPTH_COLOURS, strict=True):
        bright, dark = sorted((ground, _luminance(ink)), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= READABLE


def _luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.2 defines it, of "#rgb" or "#rrggbb"."""
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    shares = (int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4))
    red, green, blue = (share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
