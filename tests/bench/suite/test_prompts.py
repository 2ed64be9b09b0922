from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from bench.suite.prompts import OWN_PROMPTS, SuitePrompt, drawn_order, prompt_files, read_prompt_set, spread

WINDOW = 40
DECODER = SimpleNamespace(
    encode=lambda text: torch.tensor([list(text.encode())]), target=SimpleNamespace(context_window=WINDOW)
)


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def directory(tmp_path):
    kinds = ["writing", "math", "qa", "qa", "qa"]
    questions = [
        {"question_id": number, "category": kind, "turns": [f"{kind} {number}", "again"]}
        for number, kind in enumerate(kinds)
    ]
    write(tmp_path / "question.jsonl", questions)
    write(tmp_path / "HumanEval.jsonl", [{"task_id": "0", "prompt": "def f():"}, {"task_id": "1", "prompt": "x" * 30}])
    write(tmp_path / "other.jsonl", [{"prompt": "not ours"}])
    return tmp_path


def test_a_directory_stands_for_the_sets_with_a_known_name(directory):
    assert [path.name for path in prompt_files([directory])] == ["question.jsonl", "HumanEval.jsonl"]


def test_without_prompts_the_repository_has_its_own():
    assert prompt_files([]) == [OWN_PROMPTS]
    assert OWN_PROMPTS.exists()


def test_a_set_that_is_there_twice_and_a_directory_without_one_are_refused(directory, tmp_path):
    write(directory / "spec_bench.jsonl", [{"prompt": "a"}])
    with pytest.raises(ValueError, match="prompts must hold a set once, got question.jsonl and spec_bench.jsonl"):
        prompt_files([directory])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="prompts must be a directory with one of question.jsonl, .*, got .*empty"):
        prompt_files([tmp_path / "empty"])
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        prompt_files([tmp_path / "nowhere"])


def test_tasks_are_those_of_spec_bench_and_what_does_not_fit_is_counted(directory):
    read = read_prompt_set(DECODER, [directory], None, num_behind=15)
    assert read.tasks == {"mt_bench": 2, "qa": 3, "human_eval": 1}
    assert read.too_long == {"human_eval": 1}
    assert bytes(read.prompts[0].input_ids[0].tolist()) == b"writing 0"


def test_so_many_prompts_per_task_are_spread_over_its_file():
    prompts = [SuitePrompt(torch.tensor([[number]]), "qa") for number in range(10)]
    assert [int(prompt.input_ids) for prompt in spread(prompts, 4)] == [0, 2, 5, 7]
    assert spread(prompts, 4)[:1] == spread(prompts, 1)
    assert spread(prompts, None) == spread(prompts, 11) == prompts


def test_a_set_of_which_nothing_fits_is_refused(directory):
    with pytest.raises(ValueError, match="prompts must leave room for 40 tokens"):
        read_prompt_set(DECODER, [directory], None, num_behind=WINDOW)
    with pytest.raises(ValueError, match="per-task must be at least 1, got -1"):
        read_prompt_set(DECODER, [directory], -1, num_behind=1)


def test_the_order_is_the_same_every_time_and_holds_every_prompt_once():
    assert drawn_order(50) == drawn_order(50) != list(range(50))
    assert sorted(drawn_order(50)) == list(range(50))
