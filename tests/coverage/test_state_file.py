from __future__ import annotations

import pytest

from nanospec.coverage.state_file import StateFile

SETTINGS = {"tree": (5, 8, 32), "seed": 0}


def test_records_are_there_again_and_a_torn_line_is_dropped(tmp_path):
    path = tmp_path / "new" / "state.jsonl"
    state = StateFile(path, SETTINGS)
    state.add({"document": 0, "contexts": [(1, 2)]})
    state.add({"document": 1, "contexts": None})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"document": 2, "cont')
    again = StateFile(path, SETTINGS)
    assert again.records == state.records == {
        0: {"document": 0, "contexts": [[1, 2]]},
        1: {"document": 1, "contexts": None},
    }  # fmt: skip
    assert path.read_bytes() == whole


def test_a_run_of_other_settings_is_not_continued(tmp_path):
    path = tmp_path / "state.jsonl"
    StateFile(path, SETTINGS)
    with pytest.raises(ValueError, match=r"resume must be of a run with the same seed, 1, got 0 in .*state.jsonl"):
        StateFile(path, SETTINGS | {"seed": 1})
    with pytest.raises(ValueError, match="resume must be of a run with the same capacity"):
        StateFile(path, SETTINGS | {"capacity": 1})


@pytest.mark.parametrize("content", ["no json\n", '{"seed": 0, "tree": [5, 8, 32]}\n3\n', '"text"\n'])
def test_another_file_is_refused_and_left_as_it_is(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match="resume must be"):
        StateFile(path, SETTINGS)
    assert path.read_text() == content


def test_without_a_file_records_are_kept_in_memory():
    state = StateFile(None, SETTINGS)
    state.add({"document": 3})
    assert state.records == {3: {"document": 3}}


def test_settings_that_an_interruption_cut_short_are_written_again(tmp_path):
    path = tmp_path / "state.jsonl"
    StateFile(path, SETTINGS)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert StateFile(path, SETTINGS).records == {}
        assert path.read_bytes() == whole


def test_a_line_of_something_else_without_an_end_is_left_as_it_is(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("to do: buy")
    with pytest.raises(ValueError, match="resume must be a state file of this command"):
        StateFile(path, SETTINGS)
    assert path.read_text() == "to do: buy"
