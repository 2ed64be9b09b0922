from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from nanospec.coverage.pareto_plot import check_plot_path, draw_pareto, family_of


def row(vocab, rows, share, spec=None, temperature=None):
    return {
        "vocab": vocab, "spec": spec or vocab, "asked_temperature": temperature, "mean_active_vocab": rows,
        "accept_vs_full": share, "accept_vs_full_95": [share - 0.01, share + 0.02],
    }  # fmt: skip


ROWS = [
    row("full", 131072, 1.0, temperature=1.0),
    row("full,temperature=0.5", 131072, 1.1, "full", 0.5),
    row("static-1024", 1024, 0.9, "static:1024"),
    row("static-4096", 4096, 0.95, "static:4096"),
    row("hybrid-512+prior", 900, 1.15, "hybrid:512+prior"),
    row("in-context", 600, 1.05),
    row("static-list.txt", 2000, 0.97, "static:list.txt"),
    row("routed-a:99", 99, 0.97, "routed:a:99"),
]


def test_rows_of_one_kind_prior_and_temperature_are_one_line():
    assert [family_of(row) for row in ROWS] == [
        "full", "full at 0.5", "static", "static", "hybrid+prior", "in-context", "static from a file", "routed",
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_a_picture_is_800_pixels_wide_names_every_line_and_is_the_same_again(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"pareto.{suffix}"
    draw_pareto(ROWS, path)
    drawn = path.read_bytes()
    draw_pareto(ROWS, path)
    assert path.read_bytes() == drawn
    assert list(tmp_path.iterdir()) == [path]
    if suffix == "png":
        assert int.from_bytes(drawn[16:20], "big") == 800
    else:
        assert all(f"<!-- {family_of(row)} -->".encode() in drawn for row in ROWS)


def test_other_formats_and_a_missing_library_are_named(monkeypatch):
    with pytest.raises(ValueError, match=r"plot must be a file named .svg or .png, got pareto.pdf"):
        check_plot_path(Path("pareto.pdf"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"plot needs matplotlib, which is not installed: pip install matplotlib"):
        check_plot_path(Path("pareto.svg"))


def test_a_picture_that_cannot_be_drawn_leaves_the_old_one_alone(tmp_path, monkeypatch):
    def fail(figure, file, **options):
        file.write_text("half")
        raise MemoryError

    pytest.importorskip("matplotlib.figure")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    path = tmp_path / "a.svg"
    path.write_text("old")
    with pytest.raises(MemoryError):
        draw_pareto([row("full", 100, 1.0)], path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
