"""The vLLM plugin: `register` is its entry point in the group vllm.general_plugins.

With nanospec installed beside vLLM, any launch with an EAGLE, EAGLE-3 or MTP draft scores each request's own ids only.
"""

from __future__ import annotations

import logging
import os

from nanospec.integrations.vllm.architectures import ARCHITECTURES, MODELS
from nanospec.integrations.vllm.settings import VllmSettings, read_settings
from nanospec.integrations.vllm.versions import UnsupportedVllmError, check_version

__all__ = ["UnsupportedVllmError", "VllmSettings", "read_settings", "register"]

log = logging.getLogger("vllm.nanospec")  # vLLM's handlers show what is logged below "vllm"


def register() -> None:
    """Put subclasses in the place of vLLM's draft models; called by vLLM in each of its processes, any number of times.

    Does nothing where the environment switches the plugin off. Raises what `read_settings` raises; UnsupportedVllmError
    for a version out of range if the environment asks for the plugin by name, else it is a warning and vLLM drafts by
    itself.
    """
    settings = read_settings(os.environ)
    if not settings.is_on:
        return
    import vllm

    try:
        check_version(getattr(vllm, "__version__", None))
    except UnsupportedVllmError as error:
        if settings.is_asked_for:
            raise
        log.warning("nanospec: vLLM drafts over its full vocabulary: %s", error)
        return
    for name, architecture in ARCHITECTURES.items():
        # By name, so that nothing of the models is imported here.
        vllm.ModelRegistry.register_model(name, f"{MODELS}:{architecture.own_name}")
