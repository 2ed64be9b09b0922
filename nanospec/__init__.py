"""nanospec: lossless speculative decoding that drafts from the few token ids that the context makes likely."""

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
