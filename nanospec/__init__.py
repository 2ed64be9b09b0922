"""nanospec: lossless speculative decoding that drafts from the few token ids that the context makes likely."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanospec.batch.engine import BatchEngine
    from nanospec.conversation import Conversation
    from nanospec.decode import SpeculativeDecoder
    from nanospec.draft_vocabulary import DraftVocabulary
    from nanospec.gathered_head import GatheredHead
    from nanospec.integrations.transformers import assist_with, generate_with
    from nanospec.locality_tracker import LocalityTracker
    from nanospec.prefix_cache import PrefixCache
    from nanospec.records import DraftTree, DraftVocab, Observation, Verdict
    from nanospec.result import GenerationResult, StreamPiece
    from nanospec.sampling import SamplingParams
    from nanospec.static_tree import StaticTree
    from nanospec.target import Target
    from nanospec.tree_drafter import TreeDrafter
    from nanospec.tree_shape import TreeShape
    from nanospec.verifier import verify
    from nanospec.vocab.in_context import InContextVocab
    from nanospec.vocab_selector import VocabSelector, build_vocab_selector

__all__ = [
    "BatchEngine",
    "Conversation",
    "DraftTree",
    "DraftVocab",
    "DraftVocabulary",
    "GatheredHead",
    "GenerationResult",
    "InContextVocab",
    "LocalityTracker",
    "Observation",
    "PrefixCache",
    "SamplingParams",
    "SpeculativeDecoder",
    "StaticTree",
    "StreamPiece",
    "Target",
    "TreeDrafter",
    "TreeShape",
    "Verdict",
    "VocabSelector",
    "assist_with",
    "build_vocab_selector",
    "generate_with",
    "verify",
]

# Each is imported when first asked for: torch and transformers take seconds, which `nanospec --help` can do without.
_PLACES = {
    "BatchEngine": "nanospec.batch.engine",
    "Conversation": "nanospec.conversation",
    "DraftTree": "nanospec.records",
    "DraftVocab": "nanospec.records",
    "DraftVocabulary": "nanospec.draft_vocabulary",
    "GatheredHead": "nanospec.gathered_head",
    "GenerationResult": "nanospec.result",
    "InContextVocab": "nanospec.vocab.in_context",
    "LocalityTracker": "nanospec.locality_tracker",
    "Observation": "nanospec.records",
    "PrefixCache": "nanospec.prefix_cache",
    "SamplingParams": "nanospec.sampling",
    "SpeculativeDecoder": "nanospec.decode",
    "StaticTree": "nanospec.static_tree",
    "StreamPiece": "nanospec.result",
    "Target": "nanospec.target",
    "TreeDrafter": "nanospec.tree_drafter",
    "TreeShape": "nanospec.tree_shape",
    "Verdict": "nanospec.records",
    "VocabSelector": "nanospec.vocab_selector",
    "assist_with": "nanospec.integrations.transformers",
    "build_vocab_selector": "nanospec.vocab_selector",
    "generate_with": "nanospec.integrations.transformers",
    "verify": "nanospec.verifier",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_PLACES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
