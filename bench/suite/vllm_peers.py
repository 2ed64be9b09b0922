"""vLLM as a peer: a process per row with an engine that stays loaded, its settings, and how long it drafts.

Every engine decodes one request at a time, in the dtype and with the threads of all rows, compiled as vLLM compiles
unasked. Its prefix cache is off, since every prompt is run more than once and no other row keeps anything of it.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.suite.decoded import Decode, Decoded
from bench.suite.rows import VLLM_EAGLE, VLLM_NANOSPEC, VLLM_ROWS
from bench.suite.worker_process import WorkerProcess
from nanospec.checkpoints.files import resolve_checkpoint
from nanospec.cli.machine import dtype_name
from nanospec.decode import SpeculativeDecoder
from nanospec.demo import DRAFT_DIRECTORIES, DRAFT_DIRECTORY, TARGET_DIRECTORY
from nanospec.drafters.eagle import EagleDrafter
from nanospec.drafters.eagle3 import Eagle3Drafter

WORKER = "bench.suite.vllm_worker"
ROOT = Path(__file__).parents[2]
METHODS = {EagleDrafter: "eagle", Eagle3Drafter: "eagle3"}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FREQUENT_IDS, HYBRID, IN_CONTEXT = "frequent_ids.safetensors", "hybrid:1024", "in-context"
CACHE_BYTES = 2**30  # of one engine: 8,192 tokens of an eight-billion-parameter model
DESCRIBE_SECONDS, START_SECONDS, ANSWER_SECONDS = 120.0, 900.0, 600.0
FIRST_CHAIN, CHAINS = 4, range(1, 11)  # drafted tokens per step: where the search begins, and what may come out
PROBE_TOKENS, PROBE_POSITIONS, WARM_UP_TOKENS = 48, 128, 16
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # its engine process waits by spinning, beside rows that are being timed
    "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
    "KMP_BLOCKTIME": "5", "KMP_TPAUSE": "0",  # as vLLM sets them for processes that it starts
}  # fmt: skip
PLUGIN_OFF = {"NANOSPEC_OFF": "1"}


class VllmEnvironment(NamedTuple):
    """python    interpreter
    versions   by distribution, vLLM's first
    has_plugin whether nanospec is installed there
    preload    libraries that vLLM wants loaded first
    """

    python: str
    versions: dict[str, str]
    has_plugin: bool
    preload: list[str]


class VllmPair(NamedTuple):
    """Directories of the target and its draft, the draft's method as vLLM calls it, and the list of frequent ids; None
    where there is none, method None where the draft is none of METHODS."""

    target: Path
    draft: Path | None
    method: str | None
    frequent_ids: Path | None


def describe_environment(python: str, seconds: float = DESCRIBE_SECONDS) -> VllmEnvironment:
    """Raises FileNotFoundError where there is no such program, ValueError where it is no interpreter with vLLM."""
    program = shutil.which(python)
    if program is None:
        raise FileNotFoundError(f"vllm must be a Python interpreter, but {python} is no program")
    program = os.path.abspath(program)  # not where a link leads: an environment's interpreter knows it by its place
    try:
        described = subprocess.run(
            [program, "-m", WORKER, "--describe"], cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=True
        )
        found = json.loads(described.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        detail = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
        raise ValueError(f"vllm must be a Python interpreter, got {python}: {''.join(detail)}") from None
    if not found["versions"]:
        raise ValueError(f"vllm must be a Python interpreter in whose environment vLLM is installed, got {python}")
    return VllmEnvironment(program, **found)


def pair_of(decoder: SpeculativeDecoder, target: str | None, draft: str | None) -> VllmPair:
    """target, draft: as the options say, None: the embedded ones. Raises what `resolve_checkpoint` raises."""
    method = METHODS.get(type(decoder.drafter))
    if target is None:
        directory = DRAFT_DIRECTORIES[draft or "eagle"] if method else None
        return VllmPair(TARGET_DIRECTORY, directory, method, DRAFT_DIRECTORY / FREQUENT_IDS)
    directory = resolve_checkpoint(draft, "draft") if draft is not None and method else None
    has_list = directory is not None and (directory / FREQUENT_IDS).exists()
    return VllmPair(
        resolve_checkpoint(target, "target").absolute(),
        directory and directory.absolute(),
        method,
        directory.absolute() / FREQUENT_IDS if has_list else None,
    )


def what_lacks(environment: VllmEnvironment, pair: VllmPair, decoder: SpeculativeDecoder) -> dict[str, str]:
    """Why rows cannot take part, by their names."""
    if decoder.target.device.type != "cpu":
        return dict.fromkeys(VLLM_ROWS, f"its rows run on the CPU, the others on {decoder.target.device}")
    if decoder.target.dtype not in DTYPES:
        return dict.fromkeys(VLLM_ROWS, f"vLLM has no dtype {dtype_name(decoder.target.dtype)}")
    if pair.method is None:
        reason = f"the pair's draft must be EAGLE or EAGLE-3, got {type(decoder.drafter).__name__}"
        return dict.fromkeys((VLLM_EAGLE, VLLM_NANOSPEC), reason)
    return {} if environment.has_plugin else {VLLM_NANOSPEC: f"nanospec is not installed beside {environment.python}"}


class VllmPeers:
    """Rows of vLLM, whose processes start when they are first asked; `close` ends them.

    num_positions  most tokens of a prompt and its answer together, with room for what is drafted behind
    logs           directory for a file NAME.log of every row
    """

    def __init__(
        self, environment: VllmEnvironment, pair: VllmPair, dtype: torch.dtype, num_positions: int, logs: Path
    ) -> None:
        self.environment, self.pair, self.dtype, self.logs = environment, pair, dtype, logs
        self.num_positions = num_positions
        self._workers: dict[str, WorkerProcess] = {}
        self._stack = ExitStack()
        self._draft_directory: Path | None = None

    def settings(self, name: str, num_drafted: int | None) -> dict[str, Any]:
        """engine: arguments of `vllm.LLM`, without the draft's directory where a list lies in it; environment: the
        plugin's variables and the threads. num_drafted: tokens per step, None for the row that drafts none."""
        engine = {
            "model": str(self.pair.target), "dtype": dtype_name(self.dtype),
            "max_model_len": max(self.num_positions, PROBE_POSITIONS),
            "max_num_seqs": 1, "enable_prefix_caching": False, "kv_cache_memory_bytes": CACHE_BYTES,
            "skip_tokenizer_init": True, "seed": 0,
        }  # fmt: skip
        if num_drafted is not None:
            speculative = {"method": self.pair.method, "model": str(self.pair.draft)}
            engine["speculative_config"] = speculative | {"num_speculative_tokens": num_drafted}
            engine["per_request_spec_decode_metrics"] = "summary"
        plugin = self._plugin() if name == VLLM_NANOSPEC else PLUGIN_OFF
        return {"engine": engine, "environment": {"OMP_NUM_THREADS": str(torch.get_num_threads()), **plugin}}

    def find_chain(self, name: str, prompts: Sequence[Tensor]) -> int:
        """Drafted tokens per step with which the row says most tokens per second behind these prompts."""

        def rate(num_drafted: int) -> float:
            try:
                decode = self.row(name, num_drafted)
                decode(prompts[0], WARM_UP_TOKENS)
                results = [decode(prompt, PROBE_TOKENS) for prompt in prompts]
            finally:
                self._end(name)
            return sum(result.step_tokens for result in results) / sum(result.decode_seconds for result in results)

        return climb(rate, FIRST_CHAIN, CHAINS)

    def row(self, name: str, num_drafted: int | None) -> Decode:
        """Decodes in a process that is started by the first call."""

        def decode(input_ids: Tensor, max_new_tokens: int) -> Decoded:
            if name not in self._workers:
                self._start(name, num_drafted)
            request = {"prompt": input_ids[0].tolist(), "max_new_tokens": max_new_tokens}
            return decoded_from(self._workers[name].ask(request, ANSWER_SECONDS))

        return decode

    def close(self) -> None:
        for name in list(self._workers):
            self._end(name)
        self._stack.close()

    def _start(self, name: str, num_drafted: int | None) -> None:
        settings = self.settings(name, num_drafted)
        if num_drafted is not None:
            settings["engine"]["speculative_config"]["model"] = str(self._draft_without_list())
        command = [self.environment.python, "-m", WORKER]
        environment = self._inherited() | ENVIRONMENT | settings["environment"]
        self._workers[name] = WorkerProcess(name, command, environment, self.logs / f"{name}.log", ROOT)
        threads = self._workers[name].ask({"engine": settings["engine"]}, START_SECONDS)["threads"]
        if threads != torch.get_num_threads():
            raise ChildProcessError(f"{name} must run with {torch.get_num_threads()} threads, got {threads}")

    def _end(self, name: str) -> None:
        if name in self._workers:
            self._workers.pop(name).close()

    def _inherited(self) -> dict[str, str]:
        """Of the plugin's settings none, and libraries to preload unless somebody has chosen some."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("NANOSPEC_")}
        path = [str(ROOT), *filter(None, [inherited.get("PYTHONPATH")])]
        inherited.setdefault("LD_PRELOAD", ":".join(self.environment.preload))
        return inherited | {"PYTHONPATH": os.pathsep.join(path)}

    def _plugin(self) -> dict[str, str]:
        if self.pair.frequent_ids is None:
            return {"NANOSPEC_VOCAB": IN_CONTEXT}
        return {"NANOSPEC_VOCAB": HYBRID, "NANOSPEC_FREQUENT_IDS": str(self.pair.frequent_ids)}

    def _draft_without_list(self) -> Path:
        """vLLM would read a list of ids beside a draft as weights: then a directory of links to all the rest."""
        assert self.pair.draft is not None, "rows without a draft are left out"
        if not (self.pair.draft / FREQUENT_IDS).exists():
            return self.pair.draft
        if self._draft_directory is None:
            self._draft_directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="suite-draft-")))
            for path in self.pair.draft.iterdir():
                if path.name != FREQUENT_IDS:
                    (self._draft_directory / path.name).symlink_to(path)
        return self._draft_directory


def decoded_from(answer: Mapping[str, Any]) -> Decoded:
    """A worker's answer as of any other row. Tokens of a step are counted before the cut at the length."""
    (ttft, first_tokens), *others = answer["pieces"]
    steps, num_accepted, rows = len(others), answer["num_accepted"], answer["rows"]
    kept = sum(num_tokens for _, num_tokens in others)
    return Decoded(
        answer["token_ids"],
        answer["seconds"],
        ttft,
        first_tokens,
        steps,
        kept if num_accepted is None else steps + num_accepted,
        None if rows is None else sum(rows[:steps]),  # nobody verifies what is drafted behind the last token
    )


def climb(rate: Callable[[int], float], first: int, allowed: Container[int]) -> int:
    """Where `rate` is highest, found by going from `first` upwards, or else downwards, as long as it rises.

    Example: rates 1, 3, 5, 4, 2 of 1 to 5 give 3 from any first.
    """
    measured = functools.cache(rate)
    best = first
    for step in (1, -1):
        while best + step in allowed and measured(best + step) > measured(best):
            best += step
    return best
