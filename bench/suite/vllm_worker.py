"""One vLLM engine that decodes what it is sent, run by the interpreter of an environment with vLLM:

    PYTHON -m bench.suite.vllm_worker --describe     what is installed there, as one JSON object
    PYTHON -m bench.suite.vllm_worker                JSON lines in, JSON lines out, until its input ends

The first line in is {"engine": arguments of vllm.LLM}, its answer {"threads": n}. Every further line is
{"prompt": ids, "max_new_tokens": n}, its answer

    token_ids     what was generated; no id ends it
    seconds       from the call into the engine to its end: what the two processes tell each other is not in it
    pieces        [seconds, number of tokens] of every engine step that brought tokens, the seconds since the call
    num_accepted  drafted tokens that the target took, before the cut at the length; None: nobody drafted
    rows          ids that the draft scored after each of these steps; None: nobody drafted

The engine runs in this process (VLLM_ENABLE_V1_MULTIPROCESSING=0) and waits for the next line without any work.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any, TextIO

PACKAGES = ("torch", "transformers", "nanospec")
PLUGIN_GROUP, PLUGIN = "vllm.general_plugins", "nanospec"
PRELOADS = ("libiomp5.so",)  # vLLM's documents: without it speculative decoding on an x86 CPU is much slower


def main() -> None:
    if "--describe" in sys.argv[1:]:
        print(json.dumps(describe()))
    else:
        serve(sys.stdin, take_stdout())


def describe() -> dict[str, Any]:
    """versions by distribution, vLLM's first, none where there is no vLLM; has_plugin: nanospec is installed, not only
    importable; preload: libraries that vLLM wants loaded first and does not load itself. Imports none of them."""
    spec = util.find_spec("vllm")
    if spec is None:
        return {"versions": {}, "has_plugin": False, "preload": []}
    names = [*metadata.packages_distributions().get("vllm", ["vllm"])[:1], *PACKAGES]
    libraries = [Path(sys.prefix) / "lib" / name for name in PRELOADS]
    libraries += [path for place in spec.submodule_search_locations or () for path in _allocators(Path(place))]
    return {
        "versions": {name: _version(name) for name in names} | {"python": platform.python_version()},
        "has_plugin": any(point.name == PLUGIN for point in metadata.entry_points(group=PLUGIN_GROUP)),
        "preload": [str(path) for path in libraries if path.exists()],
    }


def take_stdout() -> TextIO:
    """Stdout for answers alone; whatever else is printed goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def serve(requests: TextIO, answers: TextIO) -> None:
    """What cannot be done ends the process, its traceback on stderr."""
    import torch
    from vllm import LLM

    engine = LLM(**json.loads(requests.readline())["engine"]).llm_engine
    count_rows = row_counter(engine)
    _send(answers, {"threads": torch.get_num_threads()})
    numbers = itertools.count()
    for line in requests:
        request = json.loads(line)
        _send(answers, decode(engine, count_rows, numbers, request["prompt"], request["max_new_tokens"]))


def decode(
    engine: Any,
    count_rows: Callable[[], int] | None,
    numbers: Iterator[int],
    prompt: list[int],
    max_new_tokens: int,
) -> dict[str, Any]:
    """One greedy request, as the module's text says."""
    from vllm import SamplingParams
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind

    token_ids: list[int] = []
    pieces, rows, last = [], [], None
    began = time.perf_counter()
    sampling = SamplingParams(
        temperature=0.0,
        max_tokens=max_new_tokens,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    engine.add_request(str(next(numbers)), tokens_input(prompt), sampling)
    while engine.has_unfinished_requests():
        for output in engine.step():
            last = output.outputs[0]
            pieces.append((time.perf_counter() - began, len(last.token_ids)))
            token_ids += last.token_ids
            if count_rows is not None:
                rows.append(count_rows())
    seconds = time.perf_counter() - began
    taken = getattr(last, "spec_decode_metrics", None)
    return {
        "token_ids": token_ids,
        "seconds": seconds,
        "pieces": pieces,
        "num_accepted": None if taken is None else sum(number * count for number, count in enumerate(taken.histogram)),
        "rows": None if count_rows is None else rows,
    }


def row_counter(engine: Any) -> Callable[[], int] | None:
    """Tells how many ids the draft scored last; None where nobody drafts."""
    speculative = engine.vllm_config.speculative_config
    if speculative is None:
        return None
    config = speculative.draft_model_config.hf_config
    num_all = getattr(config, "draft_vocab_size", None) or config.vocab_size
    model = engine.model_executor.driver_worker.model_runner.drafter.model
    model = model.unwrap() if hasattr(model, "unwrap") else model
    if not hasattr(model, "head_now"):  # vLLM's own class
        return lambda: num_all

    def count() -> int:
        head = model.head_now()
        return num_all if head is None or head.is_full else int(head.count[0])

    return count


def _allocators(package: Path) -> Iterator[Path]:
    """A build may bring its own, which vLLM preloads into processes that it starts, but this is none of them."""
    yield from itertools.islice((package / "libs").glob("libtcmalloc*.so*"), 1)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _send(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
