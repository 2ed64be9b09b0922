"""What proposes: models that turn verified tokens into scores for the next ones, level by level."""

from nanospec.drafters.drafter import Drafter
from nanospec.drafters.eagle import EagleDrafter
from nanospec.drafters.eagle3 import Eagle3Drafter
from nanospec.drafters.medusa import MedusaDrafter, MedusaShape

__all__ = ["Drafter", "Eagle3Drafter", "EagleDrafter", "MedusaDrafter", "MedusaShape"]
