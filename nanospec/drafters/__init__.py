"""What proposes: models that turn verified tokens into scores for the next ones, level by level, or a look-up."""

from nanospec.drafters.causal_lm import CausalLMDrafter
from nanospec.drafters.drafter import Drafter
from nanospec.drafters.eagle import EagleDrafter
from nanospec.drafters.eagle3 import Eagle3Drafter
from nanospec.drafters.joined_drafter import JoinedDrafter
from nanospec.drafters.medusa import MedusaDrafter, MedusaShape
from nanospec.drafters.mtp import MtpDrafter
from nanospec.drafters.prompt_lookup import PromptLookupDrafter

__all__ = [
    "CausalLMDrafter",
    "Drafter",
    "Eagle3Drafter",
    "EagleDrafter",
    "JoinedDrafter",
    "MedusaDrafter",
    "MedusaShape",
    "MtpDrafter",
    "PromptLookupDrafter",
]
