from __future__ import annotations

import pytest

from nanospec.cli.progress import busy, progress_bar


@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress_is_shown_on_a_terminal_only_and_never_on_stdout(capsys, monkeypatch, is_terminal):
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with busy("loading"), progress_bar("comparing", 2) as advance:
        advance()
        advance()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert bool(captured.err) == is_terminal
