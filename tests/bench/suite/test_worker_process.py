from __future__ import annotations

import os
import sys
import time

import pytest

from bench.suite import worker_process
from bench.suite.worker_process import WorkerProcess

SECONDS = 60.0  # what a small process never needs
ECHO = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
LONG = 5 * worker_process.CHUNK_BYTES


@pytest.fixture
def start(tmp_path):
    workers = []

    def start(script: str) -> WorkerProcess:
        command = [sys.executable, "-S", "-c", script]
        workers.append(WorkerProcess("the peer", command, os.environ, tmp_path / "logs" / "peer.log", tmp_path))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


def is_alive(worker: WorkerProcess) -> bool:
    return worker._process.poll() is None


def test_every_question_gets_its_answer_however_long(start):
    worker = start(ECHO)
    for message in ({"number": 1}, {"text": "x" * LONG}, {"number": 2}):
        assert worker.ask(message, SECONDS) == message


def test_answers_that_arrive_together_are_told_apart(start):
    worker = start('import sys\nsys.stdin.readline()\nprint(\'{"a": 1}\\n{"a": 2}\', flush=True)\nsys.stdin.read()')
    assert [worker.ask({}, SECONDS) for _ in range(2)] == [{"a": 1}, {"a": 2}]


def test_a_process_ends_with_its_input_and_may_be_closed_twice(start):
    worker = start(ECHO)
    worker.ask({}, SECONDS)
    worker.close()
    worker.close()
    assert worker._process.returncode == 0


def test_a_process_that_does_not_end_with_its_input_is_killed(start, monkeypatch):
    worker = start("import time\nprint('{}', flush=True)\nwhile True: time.sleep(1)")
    worker.ask({}, SECONDS)
    monkeypatch.setattr(worker_process, "END_SECONDS", 0.1)
    worker.close()
    assert not is_alive(worker)


def test_a_crash_is_an_error_with_the_end_of_the_log(start):
    worker = start(
        "import sys\nsys.stdin.readline()\nfor n in range(40): print('line', n, file=sys.stderr)\nsys.exit(3)"
    )
    with pytest.raises(
        ChildProcessError, match="^the peer ended with exit status 3; the end of .*peer.log: line 28"
    ) as e:
        worker.ask({}, SECONDS)
    assert str(e.value).endswith(" | line 39")
    with pytest.raises(ChildProcessError, match="exit status 3"):
        worker.ask({}, SECONDS)


def test_a_signal_is_named_and_an_empty_log_said(start):
    worker = start("import os, sys\nsys.stdin.readline()\nos.kill(os.getpid(), 9)")
    with pytest.raises(ChildProcessError, match=r"was ended by SIGKILL; the end of .*: \(nothing\)"):
        worker.ask({}, SECONDS)


def test_a_late_answer_is_an_error_and_the_process_gone(start):
    worker = start("import sys, time\nprint('loading', file=sys.stderr, flush=True)\ntime.sleep(600)")
    while not worker.log.read_text():
        time.sleep(0.01)
    with pytest.raises(TimeoutError, match=r"the peer did not answer within 0.2 s; the end of .*peer.log: loading"):
        worker.ask({}, 0.2)
    assert not is_alive(worker)


def test_what_is_no_json_is_an_error_and_the_process_gone(start):
    worker = start("import sys\nsys.stdin.readline()\nprint('hello', flush=True)\nsys.stdin.read()")
    with pytest.raises(ChildProcessError, match="the peer must answer with JSON, got b'hello'"):
        worker.ask({}, SECONDS)
    assert not is_alive(worker)


def test_a_log_is_continued(start, tmp_path):
    for text in ("one", "two"):
        start(f"import sys\nprint('{text}', file=sys.stderr)\n{ECHO}").ask({}, SECONDS)
    assert (tmp_path / "logs" / "peer.log").read_text() == "one\ntwo\n"
