"""Nothing half-written: what an error or a reader in between sees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nanospec.all_or_nothing import new_directory, new_file


def test_a_file_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("old")
    with new_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_after_an_error_the_old_file_is_all_there_is(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("old")
    with pytest.raises(NotADirectoryError), new_file(path) as partial:
        (partial / "half").write_text("new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("exists", [True, False])
def test_a_directory_appears_when_it_is_whole(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "new" / "draft"
    if exists:
        path.mkdir(parents=True)
    with new_directory(path) as partial:
        (partial / "config.json").write_text("{}")
        assert not path.exists() or not list(path.iterdir())
    assert [file.name for file in path.iterdir()] == ["config.json"]
    assert list(path.parent.iterdir()) == [path]


def test_after_an_error_there_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), new_directory(tmp_path / "draft") as partial:
        (partial / "no directory" / "config.json").write_text("{}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_file", [True, False])
def test_what_is_taken_is_refused_and_kept(tmp_path: Path, is_file: bool) -> None:
    taken = tmp_path / "taken"
    if not is_file:
        taken.mkdir()
    (taken if is_file else taken / "x").write_text("mine")
    with pytest.raises(ValueError, match="out must be a new or empty directory, got .*taken"), new_directory(taken):
        pass
    assert (taken if is_file else taken / "x").read_text() == "mine"


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    previous = os.umask(0o022)
    try:
        with new_file(tmp_path / "list.txt"):
            pass
        with new_directory(tmp_path / "draft") as partial:
            (partial / "weights").touch(mode=0o600)
    finally:
        os.umask(previous)
    written = (tmp_path / "list.txt", tmp_path / "draft" / "weights", tmp_path / "draft")
    assert [path.stat().st_mode & 0o777 for path in written] == [0o644, 0o644, 0o755]


def test_a_link_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, place in (("link", "empty"), ("dangling", "none")):
        link = tmp_path / name
        link.symlink_to(tmp_path / place, target_is_directory=True)
        with pytest.raises(ValueError, match="out must be a new or empty directory, .* is a link"), new_directory(link):
            pass
        assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "empty", "link"]


def test_the_current_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for path in (".", tmp_path / "here", "../here"):
        with pytest.raises(ValueError, match="out must be a new or empty directory, .* this runs"), new_directory(path):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_mount_point_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path)
    with pytest.raises(ValueError, match="or a disk is mounted"), new_directory(tmp_path):
        pass


def test_a_relative_path_through_a_link_is_where_it_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    monkeypatch.chdir(tmp_path / "real")
    with new_directory("../link/draft") as partial:
        (partial / "config.json").write_text("{}")
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["draft"]
