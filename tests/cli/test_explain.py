"""`nanospec explain` on a pair read from disk."""

from __future__ import annotations

from typer.testing import CliRunner

from nanospec.cli.main import app
from tests.pair_on_disk import save_pair


def test_a_page_is_written_whole_or_not_at_all(tmp_path):
    target, draft = save_pair(tmp_path)
    command = ["explain", "abc", "--target", target, "--draft", draft, "--tree", "3,3,10", "--max-new-tokens", "20"]
    page = tmp_path / "page.html"
    result = CliRunner().invoke(app, [*command, "--out", str(page)])
    assert result.exit_code == 0, result.output
    assert "20 tokens in" in result.stdout
    assert "(miss: a token of the target that the draft vocabulary lacked)" in result.stdout
    assert page.read_text().startswith("<!doctype html>")
    assert page.read_text().count("miss: a token of the target that the draft vocabulary lacked") == 1
    refused = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "other.html"), "--temperature", "-1"])
    assert refused.exit_code == 2
    assert not (tmp_path / "other.html").exists()
