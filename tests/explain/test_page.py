"""The page: whole, safe whatever the tokens say, and drawn by a browser where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from nanospec.explain import DraftedNode, ExplainedStep, ExplainedToken, Explanation, page_of

EVIL = "</script><img src=x onerror=alert(1)>{{STEPS}}<!--"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def explanation(text: str = " a") -> Explanation:
    nodes = [
        DraftedNode(1, text, 0, 0, 0.0, True),
        DraftedNode(2, text, 0, 1, -0.5, True),
        DraftedNode(3, "no", 0, 1, -2.0, False),
    ]
    tokens = [
        ExplainedToken(1, text, "prompt", 0, -1, False),
        ExplainedToken(2, text, "drafted", 1, 0, True),
        ExplainedToken(9, "bye", "bonus", 2, 0, False),
    ]
    return Explanation(text, tokens, [ExplainedStep(17, nodes)], "length", "in-context", "eagle")


def test_every_token_says_where_it_came_from():
    page = page_of(explanation())
    titles = re.findall(r'title="([^"]*)"', page)
    assert titles == [
        "first token, from the prompt pass",
        "step 1: drafted, accepted at depth 1",
        "step 1: bonus token of the target, not in the draft vocabulary (a miss)",
    ]
    assert "3 tokens in 1 steps: 2.00 per target pass" in page


def test_the_page_needs_nothing_else():
    assert not re.findall(r"(?:src|href)\s*=|@import|url\(", page_of(explanation()))


def test_text_cannot_leave_its_place():
    page = page_of(explanation(EVIL))
    assert "<img" not in page
    assert page.count("</script>") == 2
    inside = re.search(r'<script type="application/json" id="steps">(.*?)</script>', page, re.DOTALL)
    assert inside is not None
    assert json.loads(inside[1]) == [
        {"active": 17, "nodes": [[EVIL, 0, 0.0, 1], [EVIL, 0, -0.5, 1], ["no", 0, -2.0, 0]]}
    ]


@pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="needs a Chromium browser")
def test_a_browser_draws_the_tree(tmp_path):
    path = tmp_path / "page.html"
    path.write_text(page_of(explanation(EVIL)), encoding="utf-8")
    browser = next(filter(None, map(shutil.which, BROWSERS)))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", path.as_uri()]
    drawn = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "Step 1: 17 active ids, 2 tokens drafted." in drawn
    assert drawn.count("<li>") == 2
    assert "<img" not in drawn
