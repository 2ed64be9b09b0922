"""SGLang: its EAGLE draft scores ids that follow the context, not a fixed list. Written against 0.5.23, not run.

SGLang finds `register` through the entry point group "sglang.srt.plugins"; see docs/integrations.md.
"""

from nanospec.integrations.sglang.hot_ids import HotIds
from nanospec.integrations.sglang.plugin import register

__all__ = ["HotIds", "register"]
