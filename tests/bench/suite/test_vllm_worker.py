from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from bench.suite.vllm_worker import decode, row_counter

ROOT = Path(__file__).parents[3]
VOCAB_SIZE, DRAFT_VOCAB_SIZE = 500, 200
# An engine with chunked prefill: a step without output, the first token, then steps of three and of what is left.
STAND_IN = """
from types import SimpleNamespace

class SamplingParams:
    def __init__(self, **given): self.given = given

class Engine:
    vllm_config = SimpleNamespace(speculative_config=None)
    def __init__(self): self.ids, self.steps = set(), []
    def add_request(self, request_id, prompt, sampling):
        assert request_id not in self.ids
        self.ids.add(request_id)
        assert prompt["type"] == "token"
        self.given, first = sampling.given, prompt["prompt_token_ids"][0]
        tokens = list(range(first, first + self.given["max_tokens"]))
        self.steps = [[], tokens[:1]] + [tokens[place:place + 3] for place in range(1, len(tokens), 3)]
    def has_unfinished_requests(self): return bool(self.steps)
    def step(self):
        tokens = self.steps.pop(0)
        taken = None if self.steps else SimpleNamespace(histogram=[1, 0, 4])
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens, spec_decode_metrics=taken)])] if tokens else []

class LLM:
    def __init__(self, **given):
        print("a banner", given)
        self.llm_engine = Engine()
"""  # noqa: E501
SOURCES = {
    "vllm": STAND_IN,
    "vllm.inputs": "def tokens_input(ids): return {'type': 'token', 'prompt_token_ids': ids}",
    "vllm.sampling_params": "import enum\nRequestOutputKind = enum.Enum('RequestOutputKind', 'CUMULATIVE DELTA')",
}


@pytest.fixture
def vllm(monkeypatch):
    for name, source in SOURCES.items():
        module = ModuleType(name)
        exec(source, module.__dict__)
        monkeypatch.setitem(sys.modules, name, module)
    return sys.modules["vllm"]


def test_a_request_is_greedy_ends_at_its_length_and_streams_without_text(vllm):
    engine = vllm.Engine()
    decode(engine, None, itertools.count(), [7], 8)
    kind = engine.given.pop("output_kind")
    assert (engine.given, kind.name) == (
        {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True, "detokenize": False}, "DELTA",
    )  # fmt: skip


def test_an_answer_has_its_tokens_and_the_clock_of_every_step_that_brought_some(vllm):
    engine, numbers = vllm.Engine(), itertools.count()
    answer = decode(engine, None, numbers, [7], 9)
    assert answer["token_ids"] == list(range(7, 16))
    assert [count for _, count in answer["pieces"]] == [1, 3, 3, 2]
    clock = [seconds for seconds, _ in answer["pieces"]]
    assert 0 < clock[0] <= clock[1] <= clock[2] <= clock[3] <= answer["seconds"]
    assert (answer["num_accepted"], answer["rows"]) == (8, None)
    assert decode(engine, None, numbers, [9], 2)["token_ids"] == [9, 10]


def test_ids_are_counted_behind_every_step_with_tokens(vllm):
    counts = iter([30, 40, 50])
    assert decode(vllm.Engine(), lambda: next(counts), itertools.count(), [7], 7)["rows"] == [30, 40, 50]


def drafting_engine(model, **config):
    runner = SimpleNamespace(drafter=SimpleNamespace(model=model))
    draft = SimpleNamespace(hf_config=SimpleNamespace(vocab_size=VOCAB_SIZE, **config))
    return SimpleNamespace(
        vllm_config=SimpleNamespace(speculative_config=SimpleNamespace(draft_model_config=draft)),
        model_executor=SimpleNamespace(driver_worker=SimpleNamespace(model_runner=runner)),
    )


def test_without_a_draft_nothing_is_counted_and_vllms_own_scores_all_it_has(vllm):
    assert row_counter(vllm.Engine()) is None
    assert row_counter(drafting_engine(object()))() == VOCAB_SIZE
    assert row_counter(drafting_engine(object(), draft_vocab_size=None))() == VOCAB_SIZE
    assert row_counter(drafting_engine(object(), draft_vocab_size=DRAFT_VOCAB_SIZE))() == DRAFT_VOCAB_SIZE


def test_the_plugin_scores_what_its_head_holds_and_all_where_it_is_full_or_off():
    heads = [SimpleNamespace(is_full=False, count=[12]), SimpleNamespace(is_full=True, count=[12]), None]
    model = SimpleNamespace(head_now=lambda: heads.pop(0))
    count = row_counter(drafting_engine(SimpleNamespace(unwrap=lambda: model)))
    assert [count() for _ in range(3)] == [12, VOCAB_SIZE, VOCAB_SIZE]


@pytest.fixture
def environment(tmp_path):
    """Of a process that finds a stand-in for vLLM, installed under another name, and one for torch."""
    package, installed = tmp_path / "vllm", tmp_path / "vllm_of_others-1.2.dist-info"
    for directory in (package / "libs", installed):
        directory.mkdir(parents=True)
    for name, source in SOURCES.items():
        (package / f"{name.partition('.')[2] or '__init__'}.py").write_text(source)
    (package / "libs" / "libtcmalloc_minimal-12.so.4").touch()
    (tmp_path / "torch.py").write_text("def get_num_threads(): return 7")
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-of-others\nVersion: 1.2\n")
    (installed / "top_level.txt").write_text("vllm\n")
    (installed / "entry_points.txt").write_text("[vllm.general_plugins]\nnanospec = a.module:register\n")
    return os.environ | {"PYTHONPATH": str(tmp_path)}


def run(environment, *arguments, options=(), **more):
    command = [sys.executable, *options, "-m", "bench.suite.vllm_worker", *arguments]
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True, **more
    )


def test_the_environment_is_described_without_importing_vllm(environment, tmp_path):
    (tmp_path / "vllm" / "__init__.py").write_text("raise RuntimeError")
    found = json.loads(run(environment, "--describe").stdout)
    assert list(found["versions"]) == ["vllm-of-others", "torch", "transformers", "nanospec", "python"]
    assert found["versions"]["vllm-of-others"] == "1.2"
    assert found["has_plugin"] is True
    assert Path(found["preload"][-1]).name == "libtcmalloc_minimal-12.so.4"


def test_an_environment_without_vllm_has_no_versions():
    without_packages = run(os.environ | {"PYTHONPATH": ""}, "--describe", options=["-S"])
    found = json.loads(without_packages.stdout)
    assert found == {"versions": {}, "has_plugin": False, "preload": []}


def test_lines_are_answered_by_lines_whatever_else_is_printed(environment):
    requests = [{"engine": {"model": "m"}}, *({"prompt": [n], "max_new_tokens": 4} for n in (3, 5))]
    done = run(environment, input="".join(json.dumps(request) + "\n" for request in requests))
    ready, *answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert ready == {"threads": 7}
    assert [answer["token_ids"] for answer in answers] == [[3, 4, 5, 6], [5, 6, 7, 8]]
    assert "a banner {'model': 'm'}" in done.stderr
