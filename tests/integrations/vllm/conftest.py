"""What tests with a real vLLM share: the embedded pair as vLLM reads it, and engines in processes of their own."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanospec.checkpoints.tokenizer import encode_prompt, load_compressed_tokenizer
from nanospec.demo import DEMO_DIRECTORY, DRAFT_DIRECTORY, TARGET_DIRECTORY
from nanospec.integrations.vllm.settings import FREQUENT_IDS_FILE
from nanospec.untrusted_files import expand_xz

NUM_PROMPTS, NUM_TOKENS, NUM_DRAFTED = 8, 64, 4
MAX_TOKENIZER_BYTES = 2**27
ENGINE_SECONDS = 1500  # also on a machine that does other things beside
ENGINE_RUN = Path(__file__).with_name("engine_run.py")
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
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


@pytest.fixture(scope="session")
def run_engine(pair, prompts, tmp_path_factory) -> Callable[..., dict[str, Any]]:
    """run_engine(draft directory, method, settings of the plugin, sampling, engine, prompts) -> what came out."""

    def run(
        draft: str, method: str, settings: dict[str, str], sampling=None, engine=None, given=None
    ) -> dict[str, Any]:
        directory = tmp_path_factory.mktemp("engine")
        speculative = {"method": method, "model": draft, "num_speculative_tokens": NUM_DRAFTED}
        request = {
            "engine": {
                "model": pair["target"], "dtype": "float32", "enforce_eager": True, "max_model_len": 512,
                "max_num_seqs": NUM_PROMPTS, "seed": 0, "speculative_config": speculative, **(engine or {}),
            },
            "prompts": given or prompts,
            "sampling": {"temperature": 0.0, "max_tokens": NUM_TOKENS, "ignore_eos": True, **(sampling or {})},
        }  # fmt: skip
        with (directory / "log").open("w") as log:
            done = subprocess.run(
                [sys.executable, str(ENGINE_RUN), str(directory / "out.json")],
                input=json.dumps(request), text=True, stdout=log, stderr=log, timeout=ENGINE_SECONDS,
                env=environment(**settings), check=False,
            )  # fmt: skip
        text = (directory / "log").read_text()
        assert done.returncode == 0, text[-4000:]
        return json.loads((directory / "out.json").read_text()) | {"log": text}

    return run
