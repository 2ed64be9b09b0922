"""Explanations made by hand, small enough to know what their page must show."""

from __future__ import annotations

from nanospec.explain import DraftedNode, ExplainedStep, ExplainedToken, Explanation


def explanation(text: str = " a", has_vocab: bool = True) -> Explanation:
    """Two steps: one token accepted and then a miss, and a tree of which nothing was accepted."""
    first = [
        DraftedNode(1, text, 0, 0, 0.0, True),
        DraftedNode(2, text, 0, 1, -0.5, True),
        DraftedNode(3, "no", 0, 1, -2.0, False),
        DraftedNode(4, "never", 2, 2, -3.0, False),
    ]
    second = [DraftedNode(9, "bye", 0, 0, 0.0, True), DraftedNode(5, "other", 0, 1, -0.25, False)]
    tokens = [
        ExplainedToken(1, text, "prompt", 0, -1, False),
        ExplainedToken(2, text, "drafted", 1, 0, True),
        ExplainedToken(9, "bye", "bonus", 2, 0, not has_vocab),
        ExplainedToken(6, "", "bonus", 1, 1, True),
    ]
    steps = [ExplainedStep(17, first), ExplainedStep(1234, second)]
    return Explanation(text, tokens, steps, "length", "in-context", "eagle", has_vocab)


def of_tokens(texts: list[str]) -> Explanation:
    """These tokens, as if all of one accepted path."""
    path = enumerate(["", *texts])
    nodes = [DraftedNode(place, text, max(place - 1, 0), place, -0.1 * place, True) for place, text in path]
    tokens = [ExplainedToken(place, text, "drafted", place, 0, True) for place, text in enumerate(texts, start=1)]
    return Explanation("?", tokens, [ExplainedStep(64, nodes)], "length", "in-context", "eagle")
