"""One generation as a page of its own: no other file, no network, readable without scripts."""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files
from typing import Any

from nanospec.explain.record import ExplainedToken, Explanation

# Steps of viridis, light enough for black text; deeper tokens have the last one. Told apart with any colour vision.
DEPTH_COLOURS = ("#fde725", "#b5de2b", "#6ece58", "#35b779", "#3fb8a6", "#5fa8c8", "#9a9fe0", "#cf9fe8")

MISS = "miss: a token of the target that the draft vocabulary lacked"


def page_of(explanation: Explanation) -> str:
    """A whole HTML document: tokens coloured by how they were produced, the tree of each step on hover or focus."""
    template = files("nanospec.explain").joinpath("page.html").read_text(encoding="utf-8")
    parts = {
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


def _span(token: ExplainedToken) -> str:
    """A token as a button that opens its step."""
    style = f' style="background:{_colour(token.depth)}"' if token.origin == "drafted" else ""
    kinds = f"token {token.origin}{' miss' if token.is_miss else ''}"
    text = escape(token.text) if token.text else "&#8203;"
    title = escape(_origin(token), quote=True)
    return f'<span tabindex="0" class="{kinds}" data-step="{token.step}" title="{title}"{style}>{text}</span>'


def _origin(token: ExplainedToken) -> str:
    if token.origin == "prompt":
        return "first token, from the prompt pass"
    if token.origin == "drafted":
        return f"step {token.step + 1}: drafted, accepted at depth {token.depth}"
    missing = "" if token.drawable else ", not in the draft vocabulary (a miss)"
    return f"step {token.step + 1}: bonus token of the target{missing}"


def _colour(depth: int) -> str:
    return DEPTH_COLOURS[min(depth, len(DEPTH_COLOURS)) - 1]


def _legend() -> str:
    last = len(DEPTH_COLOURS)
    swatches = [
        f'<span class="token drafted" style="background:{_colour(depth)}">depth {depth}{"+" * (depth == last)}</span>'
        for depth in range(1, last + 1)
    ]
    others = '<span class="token bonus">bonus</span> <span class="token bonus miss">bonus, a miss</span>'
    own = f'the target\'s own: {others}; <span class="token prompt">first</span>'
    return f"accepted at {' '.join(swatches)}; {own}; {MISS}"


def count_misses(explanation: Explanation) -> str:
    """How many misses there are, in words."""
    return f"{explanation.num_misses} miss{'' if explanation.num_misses == 1 else 'es'}"


def _figures(explanation: Explanation) -> str:
    return (
        f"{len(explanation.tokens)} tokens in {len(explanation.steps)} steps: {explanation.mean_accept_length:.2f} per "
        f"target pass, drafted by {explanation.drafter} from {explanation.mean_active:,.0f} ids on average "
        f"({explanation.vocab}); {count_misses(explanation)}; ended by {explanation.finish_reason}"
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
