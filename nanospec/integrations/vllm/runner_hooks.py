"""Which requests the rows of a batch are, and what the target said about them: hooks in vLLM's two model runners."""

from __future__ import annotations

import logging

log = logging.getLogger("vllm.nanospec")


def install_hooks() -> None:
    """Wrap methods of the runners that this process has imported, each once; a warning where there is none."""
    from nanospec.integrations.vllm import runner_v1, runner_v2

    is_v1, is_v2 = runner_v1.install(), runner_v2.install()
    if not is_v1 and not is_v2:
        log.warning("nanospec: the draft scores its full vocabulary: no model runner that the plugin knows is in use")
