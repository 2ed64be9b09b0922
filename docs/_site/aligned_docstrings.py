"""For the API pages: paragraphs of a docstring that are aligned in columns stay so, in place of being filled."""

from __future__ import annotations

import re

import griffe

COLUMNS = re.compile(r"\S {2,}\S")
INDENTED = re.compile(r"^\s+\S", re.MULTILINE)


class AlignedDocstrings(griffe.Extension):
    """Found by mkdocstrings through mkdocs.yml."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = fence_columns(obj.docstring.value)


def fence_columns(text: str) -> str:
    """Markdown of a docstring: paragraphs with columns or indented lines become blocks of code, others remain."""
    return "\n\n".join(_fenced(part) if _is_aligned(part) else part for part in re.split(r"\n\s*\n", text))


def _is_aligned(paragraph: str) -> bool:
    return bool(COLUMNS.search(paragraph) or INDENTED.search(paragraph))


def _fenced(paragraph: str) -> str:
    return f"```text\n{paragraph}\n```"
