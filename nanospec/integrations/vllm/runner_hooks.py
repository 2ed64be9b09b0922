"""Which requests the rows of a batch are, and what the target said about them: hooks in vLLM's two model runners."""

from __future__ import annotations


def install_hooks() -> None:
    """Wrap the runner's methods, once per process and only for the runners that this process has imported."""
    from nanospec.integrations.vllm import runner_v1, runner_v2

    runner_v1.install()
    runner_v2.install()
