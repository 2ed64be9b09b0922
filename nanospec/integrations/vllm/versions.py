"""Which versions of vLLM the plugin knows: it subclasses models and wraps a method of the runner."""

from __future__ import annotations

import re

FIRST, BEHIND = (0, 32), (0, 34)  # 0.32 was run, 0.33 only read
RANGE = f">={FIRST[0]}.{FIRST[1]},<{BEHIND[0]}.{BEHIND[1]}"


class UnsupportedVllmError(RuntimeError):
    """This vLLM is outside the range that the plugin knows."""


def check_version(version: object) -> None:
    """Raise UnsupportedVllmError, naming version and range, unless vLLM's `version` is one that the plugin knows."""
    match = re.match(r"(\d+)\.(\d+)", version) if isinstance(version, str) else None
    if match is None:
        raise UnsupportedVllmError(f"vllm must be a release {RANGE} for nanospec's plugin, got version {version!r}")
    if not FIRST <= (int(match[1]), int(match[2])) < BEHIND:
        raise UnsupportedVllmError(
            f"vllm must be {RANGE} for nanospec's plugin, got {version}: install another of the two, or set "
            "NANOSPEC_OFF=1 to run vLLM without it"
        )
