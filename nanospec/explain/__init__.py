"""Where every token of one generation came from, as figures and as a page to look at."""

from nanospec.explain.page import page_of
from nanospec.explain.record import DraftedNode, ExplainedStep, ExplainedToken, Explanation, explain

__all__ = ["DraftedNode", "ExplainedStep", "ExplainedToken", "Explanation", "explain", "page_of"]
