"""The page as a browser draws it: pointed at, moved through with keys, and on a telephone.

A script at the end of the page does what a person would and notes what is seen then; the browser prints the page, notes
included. It needs the browser alone.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from nanospec.explain import Explanation, page_of
from tests.explain.explanations import explanation, of_tokens

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
EVIL = "</script><img src=x onerror=alert(1)>{{STEPS}}<!--"

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs a Chromium browser")

# look() -> [what is told of the token, rows of the tree as [depth, text]]
LOOK = """
const rows = () => [...document.querySelectorAll("#tree li")].map(item => {
  let depth = 0;
  for (let above = item; above.id !== "tree"; above = above.parentElement) depth += above.tagName === "UL";
  const own = item.cloneNode(true);
  own.querySelectorAll("ul").forEach(list => list.remove());
  return [depth, own.textContent];
});
const look = () => [document.getElementById("told").textContent, rows()];
const token = place => document.querySelectorAll("#text .token")[place];
const point = place => token(place).dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
const press = key => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
"""
NOTE = """
const note = Object.assign(document.createElement("pre"), { id: "seen", textContent: JSON.stringify(seen) });
document.body.append(note);
"""


def seen(tmp_path: Path, explained: Explanation, acts: str, fragment: str = "") -> object:
    """What `acts`, a script that fills the list `seen`, notes on the page."""
    notes = f"<script>{{ const seen = []; {LOOK} {acts} {NOTE} }}</script>"
    path = tmp_path / "page.html"
    path.write_text(page_of(explained).replace("</body>", f"{notes}</body>"), encoding="utf-8")
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", path.as_uri() + fragment]
    drawn = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "<img" not in drawn
    noted = re.search(r'<pre id="seen">(.*?)</pre>', drawn, re.DOTALL)
    assert noted is not None, "a script of the page failed"
    return json.loads(unescape(noted[1]))


def first_step(chosen: str) -> list[object]:
    """Rows of the tree of step 1 when its token `chosen` is looked at."""
    here = {name: " ◀" * (name == chosen) for name in ("drafted", "bonus")}
    return [
        [1, f"✓ {json.dumps(EVIL)} 0.607{here['drafted']}"],
        [2, f'"bye" bonus, a miss{here["bonus"]}'],
        [1, '· "no" 0.135'],
        [2, '· "never" 0.050'],
    ]


def test_a_token_pointed_at_or_reached_by_keys_shows_the_tree_of_its_step(tmp_path):
    acts = """
      seen.push(look()); point(3); seen.push(look()); point(2); seen.push(look()); point(0); seen.push(look());
      token(0).focus(); press("ArrowRight"); seen.push(look());
      press("ArrowRight"); press("ArrowRight"); seen.push(look());
    """
    by_default, pointed, miss, prompt, by_key, at_end = seen(tmp_path, explanation(EVIL), acts)
    drafted = f"{json.dumps(EVIL)} step 1: drafted, accepted at depth 1"
    assert by_default == by_key == [f"{drafted}17 active ids; 3 tokens drafted, 1 accepted", first_step("drafted")]
    assert miss[0].startswith('"bye" step 1: bonus token of the target, not in the draft vocabulary (a miss)17 active')
    assert miss[1] == first_step("bonus")
    assert prompt == [f"{json.dumps(EVIL)} first token, from the prompt passnothing was drafted yet", []]
    assert pointed == at_end
    assert pointed[0].endswith("1,234 active ids; 1 tokens drafted, 0 accepted")
    assert pointed[1] == [[1, "within a character bonus ◀"], [1, '· "other" 0.779']]


def test_a_held_token_stays_until_it_is_let_go(tmp_path):
    acts = """
      const told = () => seen.push(look()[0].includes("step 1:") ? 1 : 2);
      token(3).click(); point(1); told(); document.activeElement.blur(); press("Escape"); point(1); told();
      token(1).focus(); press("Enter"); point(3); told(); press("Enter"); point(3); told();
    """
    assert seen(tmp_path, explanation(EVIL), acts) == [2, 1, 1, 2]


def test_an_address_opens_the_page_at_a_step(tmp_path):
    told, rows = seen(tmp_path, explanation(EVIL), "seen.push(...look());", "#step-2")
    assert "step 2: bonus token" in told
    assert [depth for depth, _ in rows] == [1, 1]


def test_nothing_is_wider_than_a_telephone_and_copied_text_is_the_text(tmp_path):
    texts = ["Of", " the", "\n\n", "\tindented", "x" * 80, " " * 120, "a\n b", "", ".\n"] * 5
    acts = """
      const frame = document.createElement("iframe");
      frame.style.width = "390px";
      frame.srcdoc = document.documentElement.outerHTML.replace(/<script>[^]*/, "");
      document.body.append(frame);
      frame.onload = () => {
        const { documentElement: page } = frame.contentDocument;
        const copied = page.querySelector("#text").textContent;
        document.getElementById("seen").textContent = JSON.stringify([page.clientWidth, page.scrollWidth, copied]);
      };
    """
    width, width_needed, copied = seen(tmp_path, of_tokens(texts), acts)
    assert 300 < width == width_needed
    assert copied == "".join(texts)
