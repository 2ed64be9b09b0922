from __future__ import annotations

from dataclasses import replace

import pytest

from nanospec.cli.measure import Difference
from nanospec.cli.rows import Row
from nanospec.cli.table import MAX_LISTED_DIFFERENCES, explain, print_comparison

SECONDS = {"prefill": 1.0, "draft": 1.0, "verify": 1.0, "vocabulary": 1.0, "other": 1.0}


def row(vocab, identical=True, near_ties=0):
    figures = (1234.5, 1.5, 2.0, 3.25, 1.01, 131072.0, 12.5, 0.25, 1.2, 0.031, 1234.5, 987.6, 1.4)
    return Row(vocab, *figures, identical, near_ties, 640, 64.0, 200, SECONDS)


def test_a_file_gets_the_whole_table_however_narrow_the_terminal_is(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    print_comparison([row("autoregressive"), row("full"), row("static-32768"), row("in-context")], [])
    lines = capsys.readouterr().out.splitlines()
    [line] = [line for line in lines if line.startswith("static-32768")]
    cells = "static-32768 1,234.5 1.50x 2.00x 3.25 101% 131,072 12.50 25% 1.20x 3.1% 1,234.5 1.40x yes 0"
    assert line.split() == cells.split()


def test_a_narrow_terminal_gets_rows_as_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_comparison(
        [row(vocab) for vocab in ("autoregressive", "full", "static-4096", "static-32768", "in-context")], []
    )
    lines = capsys.readouterr().out.splitlines()
    assert any("tokens/s" in line and line.count("1,234.5") == 5 for line in lines)


def test_differences_are_listed_wrong_ones_first_and_never_without_end(capsys):
    near = [Difference("full", prompt, 3, 0.1, 0.5, near_tie=True) for prompt in range(MAX_LISTED_DIFFERENCES + 4)]
    print_comparison([row("full", identical=False)], [*near, Difference("full", 40, 0, 2.0, 0.5, near_tie=False)])
    lines = [line for line in capsys.readouterr().out.splitlines() if ", prompt " in line or "more" in line]
    assert lines[0] == "full, prompt 41, token 1: margin 2, near-tie below 0.5 -> DIFFERENT"
    assert lines[-1] == "... and 5 more"
    assert len(lines) == MAX_LISTED_DIFFERENCES + 1


def test_the_sentence_speaks_of_in_context_where_it_was_run():
    sentences = explain([row("autoregressive"), row("full"), row("in-context"), row("static-4096")])
    assert sentences[0].startswith("in-context drafts from 131,072 rows instead of 131,072: draft time is 25%")


def test_the_fastest_row_is_named_whatever_the_sentence_speaks_of():
    fast = replace(row("static-4096"), tokens_per_second=2000.0, speedup_vs_autoregressive=2.5)
    sentences = explain([row("autoregressive"), row("full"), row("in-context"), fast])
    assert sentences[1] == "Fastest here: static-4096, 2,000.0 tokens/s, 2.50x plain decoding's speed."
    plain = replace(row("autoregressive"), tokens_per_second=2000.0)
    assert "Fastest here: autoregressive, 2,000.0 tokens/s." in explain([plain, row("full")])


def test_two_lines_say_what_the_columns_mean_whose_names_do_not(capsys):
    print_comparison([row("autoregressive"), row("full")], [])
    lines = capsys.readouterr().out.splitlines()
    [first] = [number for number, line in enumerate(lines) if line.startswith("accept length: ")]
    gloss = " ".join(lines[first : first + 2])
    assert all(f"{name}: " in gloss for name in ("accept length", "draft vs no head", "upkeep", "near ties"))


def test_it_is_said_that_the_rates_leave_out_the_prompt_pass():
    assert any("leave out the prompt pass" in sentence for sentence in explain([row("autoregressive")]))


def test_a_token_without_a_margin_is_shown_as_different(capsys):
    print_comparison([row("full", identical=False)], [Difference("full", 0, 4, None, 0.5, near_tie=False)])
    assert "full, prompt 1, token 5: no near-tie -> DIFFERENT" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("marks", "words"),
    [
        ({}, "exactly autoregressive decoding's"),
        ({"near_ties": 2}, "up to 2 near-ties"),
        ({"identical": False}, "NOT IDENTICAL to autoregressive decoding: full"),
    ],
)
def test_the_last_sentence_says_how_exact_the_tokens_are(marks, words):
    assert words in explain([row("autoregressive"), row("full", **marks)])[-1]
