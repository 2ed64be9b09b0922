"""File formats in, modules out, and back."""

from nanospec.checkpoints.describe import describe_checkpoint
from nanospec.checkpoints.drafter import load_drafter
from nanospec.checkpoints.eagle import load_eagle_drafter, save_eagle_drafter
from nanospec.checkpoints.medusa import load_medusa_drafter
from nanospec.checkpoints.save import save_drafter

__all__ = [
    "describe_checkpoint",
    "load_drafter",
    "load_eagle_drafter",
    "load_medusa_drafter",
    "save_drafter",
    "save_eagle_drafter",
]
