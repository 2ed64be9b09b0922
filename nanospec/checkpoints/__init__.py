"""File formats in, modules out."""

from nanospec.checkpoints.drafter import load_drafter
from nanospec.checkpoints.eagle import load_eagle_drafter, save_eagle_drafter

__all__ = ["load_drafter", "load_eagle_drafter", "save_eagle_drafter"]
