"""One vLLM engine in a process of its own: reads a JSON request from stdin, writes what came out to the file named.

    python engine_run.py OUT.json < REQUEST.json

Of the request, "engine" are arguments of `vllm.LLM`, "prompts" lists of token ids, "sampling" those of SamplingParams.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.v1.spec_decode.llm_base_proposer import SpecDecodeBaseProposer


class HeadClock:
    """Seconds and calls of everything between a draft's hidden states and its token ids; and whether every proposed id
    was among the ids of its request."""

    def __init__(self) -> None:
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
    found = {}
    for metric in llm.get_metrics():
        if "spec_decode" in metric.name:
            found[metric.name.removeprefix("vllm:spec_decode_")] = getattr(
                metric, "value", getattr(metric, "values", None)
            )
    return found


def main() -> None:
    request = json.load(sys.stdin)
    clock = HeadClock()
    clock.install()
    llm = LLM(disable_log_stats=False, **request["engine"])
    prompts = [{"prompt_token_ids": ids} for ids in request["prompts"]]
    start = time.perf_counter()
    outputs = llm.generate(prompts, SamplingParams(**request["sampling"]), use_tqdm=False)
    result = {
        "token_ids": [list(output.outputs[0].token_ids) for output in outputs],
        "seconds": time.perf_counter() - start,
        "metrics": metrics(llm),
        "head_ms_per_step": 1e3 * clock.seconds / max(clock.calls, 1),
        "num_proposed": clock.num_proposed,
        "num_inside": clock.num_inside,
        "num_full": clock.num_full,
        "rows_scored": clock.num_rows / max(clock.num_proposed, 1),
    }
    Path(sys.argv[1]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
