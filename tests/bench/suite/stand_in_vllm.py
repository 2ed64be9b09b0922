"""Stands for an interpreter with vLLM: speaks the protocol of bench/suite/vllm_worker.py without any engine.

    python stand_in_vllm.py PLAN.json -m bench.suite.vllm_worker [--describe]

PLAN.json: described, what --describe prints; answers, token ids by prompt (its ids as JSON); do, by row what it does
instead of its answers: "wrong" token, "crash", "hang", "chatter". What it is started with goes to stderr.
"""

import json
import os
import sys
import time
from pathlib import Path

THREADS = "OMP_NUM_THREADS"


def row_of(engine: dict) -> str:
    if "speculative_config" not in engine:
        return "vllm"
    return "vllm-eagle" if "NANOSPEC_OFF" in os.environ else "vllm-nanospec"


def answer(token_ids: list[int], num_drafted: int) -> dict:
    """A first token, then steps of `num_drafted + 1`; the more tokens, the shorter a step, up to three."""
    per_step, rest = num_drafted + 1, len(token_ids) - 1
    counts = [1] + [min(per_step, rest - done) for done in range(0, rest, per_step)]
    step_seconds = per_step / (1 + min(num_drafted, 3) - max(num_drafted - 3, 0) / 8)
    pieces = [(1 + step_seconds * number, count) for number, count in enumerate(counts)]
    steps = len(counts) - 1
    return {
        "token_ids": token_ids, "seconds": pieces[-1][0], "pieces": pieces,
        "num_accepted": steps * num_drafted if num_drafted else None,
        "rows": [100] * len(counts) if num_drafted else None,
    }  # fmt: skip


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    if "--describe" in sys.argv:
        print(json.dumps(plan["described"]))
        return
    engine = json.loads(sys.stdin.readline())["engine"]
    asked = {name: value for name, value in os.environ.items() if name.startswith(("NANOSPEC_", "VLLM_", "LD_"))}
    files = sorted(os.listdir(engine["speculative_config"]["model"])) if "speculative_config" in engine else []
    print(json.dumps({"engine": engine, "environment": asked, "draft_files": files}), file=sys.stderr, flush=True)
    deed = plan.get("do", {}).get(row_of(engine))
    print(json.dumps({"threads": int(os.environ[THREADS])}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if deed == "crash":
            sys.exit("RuntimeError: out of cheese")
        if deed == "hang":
            time.sleep(600)
        known = plan["answers"].get(json.dumps(request["prompt"])) or list(range(request["max_new_tokens"]))
        token_ids = known[: request["max_new_tokens"]]
        if deed == "wrong":
            token_ids = [*token_ids[:-1], (token_ids[-1] + 1) % 256]
        num_drafted = engine.get("speculative_config", {}).get("num_speculative_tokens", 0)
        print("chatter" if deed == "chatter" else json.dumps(answer(token_ids, num_drafted)), flush=True)


if __name__ == "__main__":
    main()
