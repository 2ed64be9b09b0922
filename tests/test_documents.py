"""What the documents show is so: Python blocks run, commands parse, links lead somewhere, the API page names all."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import nanospec
from nanospec import SpeculativeDecoder
from nanospec.cli.main import app
from nanospec.demo import DRAFT_DIRECTORY
from tests.pair_on_disk import save_pair

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = "# Not run by the tests: "  # the first line of a block that needs what a test has not; a reason follows
# What would take a test too long: trees that are measured, long outputs, Inductor.
SHORTER = {
    r'tree="auto"': "tree=(3, 3, 8)",
    r"max_new_tokens=(64|128|200)\b": "max_new_tokens=8",
    r'options=\{"vocabulary": vocabulary\}': 'options={"vocabulary": vocabulary, "inner": "eager"}',
}
COMMAND = re.compile(r"(?:^|/|\| )nanospec [a-z]")
LINK = re.compile(r"\]\(([^)\s]+)\)")
ANY_NUMBER = {"V": "1", "N": "1"}  # as a document writes a number that is the reader's


def python_blocks(text: str) -> list[tuple[int, str]]:
    """Line of the first statement, and the code, of every block."""
    return [(text[: match.start(1)].count("\n"), match[1]) for match in BLOCK.finditer(text)]


def commands(text: str) -> Iterator[tuple[int, list[str]]]:
    """Line and words after `nanospec` of every command in an indented block: without what stands for more (`..`), marks
    of what may be left out (`[--option VALUE]`), and what is piped in."""
    start, joined = 0, ""
    for number, line in enumerate(text.split("\n"), 1):
        start, joined = (start, joined + line.strip()) if joined else (number, line)
        if joined.endswith("\\"):
            joined = joined[:-1]
            continue
        command, joined = joined, ""
        if command.startswith("    ") and COMMAND.search(command.strip()):
            yield start, words_of(command)


def words_of(command: str) -> list[str]:
    words = shlex.split(command, comments=True)
    words = words[words.index("|") + 1 :] if "|" in words else words
    words = [word.strip("[]") for word in words[1:] if word != ".."]
    return [ANY_NUMBER.get(word, word) for word in words]


def test_blocks_are_found_with_their_lines():
    assert python_blocks("text\n```python\na = 1\n```\n```sh\nls\n```\n```python\nb = 2\n```\n") == [
        (2, "a = 1\n"),
        (8, "b = 2\n"),
    ]


def test_commands_are_found_with_their_lines():
    text = """Say

    nanospec plan .. --vocab-size V \\
        [--tp 2]  # why
    cat f | x/nanospec trim "a b"
    ls
"""
    assert list(commands(text)) == [(3, ["plan", "--vocab-size", "1", "--tp", "2"]), (5, ["trim", "a b"])]


def names_taken_for_granted(page: str, directory: Path) -> dict[str, Any]:
    """What a page's blocks use and leave to the reader: models of their own."""
    if page == "README.md":
        decoder = SpeculativeDecoder.from_demo(tree=(3, 3, 8))
        inputs = {"input_ids": decoder.encode("How does a rainbow form?")}
        return {"model": decoder.target.model, "draft": DRAFT_DIRECTORY, "inputs": inputs}
    if page == "docs/integrations.md":
        target, draft = save_pair(directory)
        settings = Path(target) / "tokenizer_config.json"
        names = {"model_input_names": ["input_ids", "attention_mask"]}  # those of a Llama
        settings.write_text(json.dumps(json.loads(settings.read_text()) | names))
        return {"TARGET": target, "DRAFT": draft, "SMALL": target}
    return {}


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if python_blocks(text)])
def test_python_blocks_run(page, tmp_path):
    namespace = names_taken_for_granted(page, tmp_path)
    for line, code in python_blocks(PAGES[page]):
        for long, short in SHORTER.items():
            code = re.sub(long, short, code)
        compiled = compile("\n" * line + code, page, "exec")  # a traceback names the page's line
        if not code.startswith(NOT_RUN):
            exec(compiled, namespace)


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if list(commands(text))])
def test_commands_are_ones_that_the_command_line_takes(page):
    known = typer.main.get_command(app).commands
    for line, (name, *options) in commands(PAGES[page]):
        assert name in known, f"{page}:{line}"
        known[name].make_context(f"{page}:{line}: {name}", options)


def test_every_command_is_shown_in_the_readme():
    shown = {words[0] for _, words in commands(PAGES["README.md"])}
    assert shown == set(typer.main.get_command(app).commands)


def anchors(text: str) -> set[str]:
    """Of headings, as repository hosts and mkdocs make them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_a_list_behind_a_paragraph_begins_after_an_empty_line(page):
    """mkdocs, unlike repository hosts, reads it as part of the paragraph otherwise."""
    prose = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    item = r"(?:[-*+]|\d+\.) "
    assert not re.findall(rf"^(?!{item}|#|\s).+\n(?={item})", prose, re.MULTILINE)


def test_links_of_the_readme_lead_somewhere():
    """Those within docs/ are checked where the site is built."""
    for link in LINK.findall(PAGES["README.md"]):
        path, _, anchor = link.partition("#")
        assert (ROOT / path).exists(), link
        assert not anchor or anchor in anchors(PAGES[path]), link


def test_every_public_name_is_on_the_api_page():
    shown = set(re.findall(r"^::: nanospec\.(\w+)$", PAGES["docs/api.md"], re.MULTILINE))
    assert shown == set(nanospec.__all__)


def test_paragraphs_of_docstrings_in_columns_stay_so_and_others_are_filled():
    pytest.importorskip("griffe", reason="comes with nanospec[docs]")
    path = ROOT / "docs" / "_site" / "aligned_docstrings.py"
    spec = importlib.util.spec_from_file_location("aligned_docstrings", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = "Says what.\nAnd more.\n\nx    [B]\nbias [V]\n\nraises\n    nothing\n\nEnd."
    fenced = "```text\nx    [B]\nbias [V]\n```\n\n```text\nraises\n    nothing\n```"
    assert module.fence_columns(text) == f"Says what.\nAnd more.\n\n{fenced}\n\nEnd."
