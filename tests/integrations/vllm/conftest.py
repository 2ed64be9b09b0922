"""What tests with a real vLLM share: the embedded pair as vLLM reads it, and engines in processes of their own."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nanospec.checkpoints.tokenizer import encode_prompt, load_compressed_tokenizer
from nanospec.demo import DEMO_DIRECTORY, DRAFT_DIRECTORY, TARGET_DIRECTORY
from nanospec.integrations.vllm.settings import FREQUENT_IDS_FILE
from nanospec.untrusted_files import expand_xz

NUM_PROMPTS, NUM_TOKENS, NUM_DRAFTED = 24, 64, 4
MOST_AT_ONCE = 8  # requests in a batch; the rest comes in as others finish
MAX_TOKENIZER_BYTES = 2**27
CACHE_BYTES = 2**28  # of keys and values; vLLM would take most of the machine's memory
ENGINE_SECONDS = 600  # a minute's work, also on a machine that does other things beside
ENGINE_RUN = Path(__file__).with_name("engine_run.py")
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_HOST_IP": "127.0.0.1",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `with_vllm` where there is none."""
    if importlib.util.find_spec("vllm") is None:
        for item in items:
            if "with_vllm" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs vllm: make test-vllm"))


@pytest.fixture(scope="session")
def pair(tmp_path_factory) -> dict[str, str]:
    """Directories "target", "draft" and "draft without its list", and the "list"."""
    root = tmp_path_factory.mktemp("pair")
    shutil.copytree(TARGET_DIRECTORY, root / "target")
    packed = root / "target" / "tokenizer.json.xz"
    (root / "target" / "tokenizer.json").write_bytes(expand_xz(packed.read_bytes(), MAX_TOKENIZER_BYTES))
    packed.unlink()
    without_list = shutil.ignore_patterns(FREQUENT_IDS_FILE)
    shutil.copytree(DRAFT_DIRECTORY, root / "draft without its list", ignore=without_list)
    return {
        "target": str(root / "target"), "draft": str(DRAFT_DIRECTORY),
        "draft without its list": str(root / "draft without its list"),
        "list": str(DRAFT_DIRECTORY / FREQUENT_IDS_FILE),
    }  # fmt: skip


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    tokenizer = load_compressed_tokenizer(TARGET_DIRECTORY)
    lines = (DEMO_DIRECTORY / "prompts.jsonl").read_text().splitlines()[:NUM_PROMPTS]
    return [encode_prompt(tokenizer, json.loads(line)["prompt"]) for line in lines]


def environment(**settings: str) -> dict[str, str]:
    """That of a process with vLLM: of the plugin's settings only those named."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NANOSPEC_")}
    return {"OMP_NUM_THREADS": "1"} | inherited | ENVIRONMENT | settings


class EngineProcess:
    """A process in which engines run one after the other, so vLLM is imported once. Asked ahead, it works ahead."""

    def __init__(self, directory: Path, **settings: str) -> None:
        self.directory, self.num_asked = directory, 0
        with (directory / "log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ENGINE_RUN)],
                stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, env=environment(**settings),
                start_new_session=True,
            )  # fmt: skip

    def ask(self, request: dict[str, Any]) -> Callable[[], dict[str, Any]]:
        """What came out, once it has: the function waits for it."""
        self.num_asked += 1
        out = self.directory / f"{self.num_asked}.json"
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request | {"out": str(out)}) + "\n")
        self.process.stdin.flush()
        return functools.cache(lambda: self.wait_for(out))

    def wait_for(self, out: Path) -> dict[str, Any]:
        deadline = time.monotonic() + ENGINE_SECONDS
        while not out.exists():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, f"no result after {ENGINE_SECONDS} s\n{self.log()}"
            time.sleep(0.1)
        result = json.loads(out.read_text())
        assert "error" not in result, f"{result['error']}\n{self.log()}"
        return result

    def log(self) -> str:
        return (self.directory / "log").read_text()[-4000:]

    def close(self) -> None:
        """Also what it has started: compiling does."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def terminated_in_order() -> Iterator[None]:
    """A SIGTERM, as of a time limit, is an interrupt: fixtures end the processes that they started."""

    def interrupt(signum: int, frame: Any) -> None:
        signal.signal(signum, signal.SIG_IGN)  # make passes on what all of its group were sent
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def engine_processes(tmp_path_factory, terminated_in_order) -> Iterator[dict[bool, EngineProcess]]:
    """One with the plugin (True), one that starts with NANOSPEC_OFF=1 and never has it."""
    processes = {
        is_on: EngineProcess(tmp_path_factory.mktemp("engines"), **({} if is_on else {"NANOSPEC_OFF": "1"}))
        for is_on in (False, True)
    }
    yield processes
    for process in processes.values():
        process.close()


@pytest.fixture(scope="module")
def ask_engine(pair, prompts, engine_processes) -> Callable[..., Callable[[], dict[str, Any]]]:
    """ask_engine(draft directory, method, settings of the plugin or None for none, sampling, engine, prompts) -> a
    function that waits for what comes out."""

    def ask(
        draft: str, method: str, settings: dict[str, str] | None, sampling=None, engine=None, given=None
    ) -> Callable[[], dict[str, Any]]:
        speculative = {"method": method, "model": draft, "num_speculative_tokens": NUM_DRAFTED}
        request = {
            "environment": settings or {},
            "engine": {
                "model": pair["target"], "dtype": "float32", "enforce_eager": True, "max_model_len": 256,
                "max_num_seqs": MOST_AT_ONCE, "kv_cache_memory_bytes": CACHE_BYTES, "seed": 0,
                "speculative_config": speculative, **(engine or {}),
            },
            "prompts": given or prompts,
            "sampling": {"temperature": 0.0, "max_tokens": NUM_TOKENS, "ignore_eos": True, **(sampling or {})},
        }  # fmt: skip
        return engine_processes[settings is not None].ask(request)

    return ask
