"""File formats in, modules out."""

from nanospec.checkpoints.eagle import load_eagle_drafter, save_eagle_drafter
from nanospec.checkpoints.medusa import load_medusa_drafter

__all__ = ["load_eagle_drafter", "load_medusa_drafter", "save_eagle_drafter"]
