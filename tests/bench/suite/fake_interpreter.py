"""A program that a suite may take for the interpreter of an environment with vLLM."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

STAND_IN = Path(__file__).with_name("stand_in_vllm.py")
DESCRIBED = {"versions": {"vllm-fake": "9.9", "python": "3.11"}, "has_plugin": True, "preload": []}


def write_interpreter(directory: Path, answers: dict[str, list[int]], **plan: Any) -> str:
    """Its path. answers, plan: as `stand_in_vllm.py` says."""
    plan_path, program = directory / "plan.json", directory / "python-with-vllm"
    plan_path.write_text(json.dumps({"described": DESCRIBED, "answers": answers, **plan}))
    words = shlex.join([sys.executable, "-S", str(STAND_IN), str(plan_path)])
    program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    program.chmod(0o755)
    return str(program)
