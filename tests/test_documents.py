"""The Python blocks of the documents run as they stand, block after block of one document in one namespace."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nanospec import SpeculativeDecoder
from nanospec.demo import DRAFT_DIRECTORY

ROOT = Path(__file__).parents[1]
# Which blocks: README's first measures tree shapes, its last compiles, both for longer than a test should take.
DOCUMENTS = {"README.md": slice(1, -1), "docs/policies.md": slice(None)}
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def python_blocks(text: str) -> list[tuple[int, str]]:
    """Line of the first statement, and the code, of every block."""
    return [(text[: match.start(1)].count("\n"), match[1]) for match in BLOCK.finditer(text)]


def test_blocks_are_found_with_their_lines():
    assert python_blocks("text\n```python\na = 1\n```\n```sh\nls\n```\n```python\nb = 2\n```\n") == [
        (2, "a = 1\n"),
        (8, "b = 2\n"),
    ]


def readers_own() -> dict:
    """What README's blocks take for granted: the decoder of its first one, and a model with a draft and a prompt."""
    decoder = SpeculativeDecoder.from_demo(tree=(3, 3, 8))
    return {
        "decoder": decoder,
        "model": decoder.target.model,
        "draft": DRAFT_DIRECTORY,
        "inputs": {"input_ids": decoder.encode("How does a rainbow form?")},
    }


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_blocks_run(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = python_blocks(text)[DOCUMENTS[document]]
    assert blocks
    namespace = readers_own() if document == "README.md" else {}
    for line, code in blocks:
        exec(compile("\n" * line + code, document, "exec"), namespace)  # a traceback names the document's line
