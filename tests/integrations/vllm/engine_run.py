"""vLLM engines, one after the other in a process of their own: a line of JSON on stdin is a request, what came out goes
to the file that the request names.

    python engine_run.py < REQUESTS.jsonl

Of a request, "out" is that file, "environment" is set while its engine lives, "engine" are arguments of `vllm.LLM`,
"prompts" lists of token ids, "sampling" those of SamplingParams.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.v1.spec_decode.llm_base_proposer import SpecDecodeBaseProposer


class HeadClock:
    """Seconds and calls of everything between a draft's hidden states and its token ids; and whether every proposed id
    was among the ids of its request."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.seconds, self.calls, self.num_rows = 0.0, 0, 0
        self.num_proposed = self.num_inside = self.num_full = 0

    def install(self) -> None:
        sample = SpecDecodeBaseProposer._sample_draft_tokens

        def timed(proposer: Any, hidden_states: Any, sampling_metadata: Any) -> Any:
            start = time.perf_counter()
            outcome = sample(proposer, hidden_states, sampling_metadata)
            self.seconds += time.perf_counter() - start
            self.calls += 1
            self.look(getattr(proposer.model, "_head", None), outcome[0])
            return outcome

        SpecDecodeBaseProposer._sample_draft_tokens = timed

    def look(self, head: Any, token_ids: Any) -> None:
        if head is None:
            return
        if head.is_full:
            self.num_full += 1
            return
        num_rows = token_ids.shape[0]
        is_active = (head.ids[:num_rows] == token_ids[:, None]).any(1)
        self.num_proposed += num_rows
        self.num_inside += int(is_active.sum())
        self.num_rows += int(head.count[:num_rows].sum())


def metrics(llm: LLM) -> dict[str, Any]:
    """Counters by name, those of speculation and of what makes a prompt's positions be read otherwise than at once."""
    found = {}
    for metric in llm.get_metrics():
        name = metric.name.removeprefix("vllm:")
        if name.startswith("spec_decode_") or name in ("num_preemptions", "prefix_cache_hits"):
            found[name.removeprefix("spec_decode_")] = getattr(metric, "value", getattr(metric, "values", None))
    return found


def run(request: dict[str, Any], clock: HeadClock) -> dict[str, Any]:
    """What came out of one engine, which is gone afterwards."""
    clock.reset()
    before = dict(os.environ)
    os.environ.update(request["environment"])
    start = time.perf_counter()
    llm = LLM(disable_log_stats=False, **request["engine"])
    try:
        began = time.perf_counter()
        prompts = [{"prompt_token_ids": ids} for ids in request["prompts"]]
        outputs = llm.generate(prompts, SamplingParams(**request["sampling"]), use_tqdm=False)
        return {
            "token_ids": [list(output.outputs[0].token_ids) for output in outputs],
            "seconds_to_start": began - start,
            "seconds": time.perf_counter() - began,
            "seconds_to_first_token": [output.metrics.first_token_latency for output in outputs],
            "metrics": metrics(llm),
            "head_ms_per_step": 1e3 * clock.seconds / max(clock.calls, 1),
            "num_proposed": clock.num_proposed,
            "num_inside": clock.num_inside,
            "num_full": clock.num_full,
            "rows_scored": clock.num_rows / max(clock.num_proposed, 1),
        }
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        os.environ.clear()
        os.environ.update(before)


def main() -> None:
    clock = HeadClock()
    clock.install()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            result = run(request, clock)
        except Exception:
            result = {"error": traceback.format_exc()}
        out = Path(request["out"])
        out.with_suffix(".part").write_text(json.dumps(result))
        out.with_suffix(".part").replace(out)


if __name__ == "__main__":
    main()
