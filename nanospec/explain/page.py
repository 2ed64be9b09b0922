"""One generation as a page of its own: no other file, no network, readable without scripts."""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files
from typing import Any

from nanospec.explain.record import ExplainedToken, Explanation

# Eight steps of viridis, each with the text colour that reads on it. It falls in lightness throughout: told apart with
# any colour vision, and in grey. Deeper tokens have the last one.
DEPTH_COLOURS = (
    *(("#fde725", "#111"), ("#a0da39", "#111"), ("#4ac16d", "#111"), ("#1fa187", "#111")),
    *(("#277f8e", "#fff"), ("#365c8d", "#fff"), ("#46327e", "#fff"), ("#440154", "#fff")),
)

# Signs for what cannot be seen, drawn by the style sheet: text that is copied from the page lacks them.
SIGNS = {"\n": "↵", "\r": "␍", "\t": "→"}
WITHIN_CHARACTER = "⋯"

# Characters from which on a token may be broken over lines: a run of blanks can be wider than a telephone.
LONG = 24

MISS = "miss: a token of the target that the draft vocabulary lacked"


def page_of(explanation: Explanation) -> str:
    """A whole HTML document: tokens coloured by how they were produced, the tree of each step on hover or focus.

    `#step-3` after its address opens it at step 3.
    """
    template = files("nanospec.explain").joinpath("page.html").read_text(encoding="utf-8")
    parts = {
        "COLOURS": _style_sheet(),
        "DEPTHS": str(len(DEPTH_COLOURS)),
        "PROMPT": escape(explanation.prompt),
        "TOKENS": "".join(_span(token) for token in explanation.tokens),
        "FIGURES": escape(_figures(explanation)),
        "LEGEND": _legend(),
        "STEPS": _script_json(_steps(explanation)),
    }
    head, *rest = template.split("{{")
    pieces = [head]
    for piece in rest:
        name, _, text = piece.partition("}}")
        pieces += [parts[name], text]
    return "".join(pieces)


def _style_sheet() -> str:
    return "\n".join(
        f"  .d{depth} {{ background: {ground}; color: {ink}; }}" for depth, (ground, ink) in enumerate(DEPTH_COLOURS, 1)
    )


def _span(token: ExplainedToken) -> str:
    """A token as a button that opens its step. Line breaks at its end follow it: its box stays on one line."""
    body = token.text.rstrip("\n")
    breaks = token.text[len(body) :]
    attributes = {
        "tabindex": "0",
        "role": "button",
        "class": _classes(token),
        "data-step": str(token.step),
        "data-depth": str(token.depth),
        "data-text": token.text,
        "title": _origin(token),
    }
    written = " ".join(f'{name}="{_attribute(value)}"' for name, value in attributes.items())
    signs = _sign(SIGNS["\n"] * len(breaks)) if token.text else _sign(WITHIN_CHARACTER)
    breakable = "<wbr>" if token.text[:1].isspace() else ""  # lines break before a blank, never inside a box
    return f"{breakable}<span {written}>{_visible(body)}{signs}</span>{breaks}"


def _classes(token: ExplainedToken) -> str:
    flags = {"miss": token.is_miss, "long": len(token.text) >= LONG}
    return " ".join(["token", _shade(token), *(name for name, holds in flags.items() if holds)])


def _shade(token: ExplainedToken) -> str:
    return token.origin + (f" d{min(token.depth, len(DEPTH_COLOURS))}" if token.origin == "drafted" else "")


def _visible(text: str) -> str:
    return "".join(_sign(SIGNS[char]) + _attribute(char) if char in SIGNS else escape(char) for char in text)


def _sign(signs: str) -> str:
    return f'<i data-sign="{signs}"></i>' if signs else ""


def _attribute(value: str) -> str:
    """A browser reads a bare carriage return as a line break."""
    return escape(value, quote=True).replace("\r", "&#13;")


def _origin(token: ExplainedToken) -> str:
    within = "" if token.text else ", within a character"
    if token.origin == "prompt":
        return f"first token, from the prompt pass{within}"
    if token.origin == "drafted":
        return f"step {token.step + 1}: drafted, accepted at depth {token.depth}{within}"
    missing = "" if token.drawable else ", not in the draft vocabulary (a miss)"
    return f"step {token.step + 1}: bonus token of the target{missing}{within}"


def _legend() -> str:
    last = len(DEPTH_COLOURS)
    swatches = [
        f'<span class="token drafted d{depth}"> {depth}{"+" * (depth == last)} </span>' for depth in range(1, last + 1)
    ]
    own = (
        '<span class="token bonus"> bonus </span> after them <span class="token bonus miss"> bonus, a miss </span> '
        '<span class="token prompt"> first </span> from the prompt pass'
    )
    return (
        f"<p>Drafted, accepted at depth {' '.join(swatches)}</p><p>The target's own: {own}</p><p>{MISS}. "
        f"{SIGNS[chr(10)]} line break, {SIGNS[chr(9)]} tab, {WITHIN_CHARACTER} within a character. In a tree: "
        "✓ accepted, · rejected; the figure is the drafter's probability, with its temperature and prior, of the path "
        "to there.</p>"
    )


def count_misses(explanation: Explanation) -> str:
    """How many misses there are, in words."""
    return _count(explanation.num_misses, "miss", "misses")


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _figures(explanation: Explanation) -> str:
    done = f"{_count(len(explanation.tokens), 'token', 'tokens')} in {_count(len(explanation.steps), 'step', 'steps')}"
    drafted = f"drafted by {explanation.drafter}"
    if explanation.has_vocab:
        drafted += f" from {explanation.mean_active:,.0f} ids on average ({explanation.vocab})"
        drafted += f"; {count_misses(explanation)}"
    return (
        f"{done}: {explanation.mean_accept_length:.2f} per target pass, {drafted}; ended by {explanation.finish_reason}"
    )


def _steps(explanation: Explanation) -> list[dict[str, Any]]:
    """What the page's script draws."""
    return [
        {
            "active": step.num_active,
            "nodes": [[node.text, node.parent, round(node.score, 3), int(node.accepted)] for node in step.nodes],
        }
        for step in explanation.steps
    ]


def _script_json(value: Any) -> str:
    """JSON inside a script element: whatever a token says, it cannot end the element or begin a comment in it."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
