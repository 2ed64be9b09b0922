"""Decoding behind transformers' `generate`: our loop in place of its own, or its own with our candidates."""

from nanospec.integrations.transformers.assisted import AssistedGenerate, assist_with
from nanospec.integrations.transformers.candidate_generator import GatheredCandidateGenerator
from nanospec.integrations.transformers.speculative import SpeculativeGenerate, generate_with

__all__ = ["AssistedGenerate", "GatheredCandidateGenerator", "SpeculativeGenerate", "assist_with", "generate_with"]
