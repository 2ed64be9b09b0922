"""One decoding step of fixed shapes: draft, verify, accept, keep, learn; nothing in it waits for the device.

All that changes from step to step lies in buffers whose addresses stay, so that the whole step can be captured once
and replayed (`step_graphs`). The number of certain tokens is a tensor; a pass reads `width` rows of the caches, and
what holds nothing yet is masked.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nanospec.drafters.drafter import FixedShapeDrafter
from nanospec.kv_cache import CachePlace
from nanospec.records import DraftTree, Verdict
from nanospec.sampling import SamplingParams
from nanospec.step_outcome import observation_of, pack_outcome, tokens_after_path
from nanospec.target import Target
from nanospec.tree_drafter import TreeGrower
from nanospec.verifier import verify
from nanospec.vocab.adaptive import adaptive_part
from nanospec.vocab_selector import VocabSelector


class StepRecord(NamedTuple):
    """What a step leaves on the device beside its outcome; top_ids int64 [1, T, k]: the target's best at every node."""

    tree: DraftTree
    verdict: Verdict
    top_ids: Tensor


class DecodingStep:
    """The step of one target, drafter, vocabulary, tree shape and way to sample; for one request at a time.

    outcome int64 [5 + L] after every run: see `StepOutcome`. Raises TypeError for a drafter without passes of fixed
    shape, NotImplementedError for a tensor-parallel target.
    """

    def __init__(
        self,
        target: Target,
        tree_drafter: TreeGrower,
        vocab: VocabSelector,
        num_top: int,
        sampling: SamplingParams,
    ) -> None:
        drafter = tree_drafter.drafter
        if not isinstance(drafter, FixedShapeDrafter):
            raise TypeError(f"drafter must have passes of fixed shape for this, got {type(drafter).__name__}")
        if target.ranks.size > 1:
            raise NotImplementedError(f"target must be whole in steps of fixed shape, got {target.ranks.size} ranks")
        self.target, self.tree_drafter, self.drafter = target, tree_drafter, drafter
        self.vocab, self.num_top, self.sampling = vocab, num_top, sampling
        self.adaptive = adaptive_part(vocab)
        self.path_length = tree_drafter.shape.depth + 1
        device, vocab_size = target.device, target.vocab_size
        with torch.inference_mode(False):  # ordinary tensors, writable in and outside inference mode
            self.offsets = torch.arange(self.path_length, device=device)
            self.root_id = torch.zeros(1, 1, dtype=torch.int64, device=device)
            self.state = torch.zeros(1, 1, drafter.state_size, dtype=drafter.dtype, device=device)
            self.length, self.num_generated = torch.zeros(2, 1, dtype=torch.int64, device=device)
            self.uniforms = torch.zeros(target.context_window + self.path_length, dtype=torch.float64, device=device)
            is_penalized = sampling.repetition_penalty != 1.0
            self.seen = torch.zeros(1, vocab_size, dtype=torch.bool, device=device) if is_penalized else None
            self.outcome = torch.zeros(5 + self.path_length, dtype=torch.int64, device=device)

    def begin(self, root_id: Tensor, state: Tensor, uniforms: Tensor, seen: Tensor | None) -> None:
        """Take over a request after its prompt: root_id int64 [1, 1] is the token that the prompt pass yielded, state
        [1, 1, D] the drafter's after it, uniforms float64 [n] and seen bool [1, V] as in `SpeculativeLoop`."""
        self.root_id.copy_(root_id)
        self.state.copy_(state)
        self.length.fill_(self.target.cache.length)
        self.num_generated.fill_(1)
        self.uniforms[: uniforms.shape[0]] = uniforms
        if self.seen is not None:
            assert seen is not None, "a penalty needs the ids seen so far"
            self.seen.copy_(seen)

    def run(self, width: int) -> StepRecord:
        """One step over the first `width` rows of the caches, which hold all certain tokens, the root and one tree."""
        place = CachePlace(self.length, width)
        tree = self.tree_drafter.draft(self.root_id, self.state, self.vocab.select(), place)
        output = self.target.judge(tree, self.num_top, place)
        u = self.uniforms.index_select(0, self.num_generated + self.offsets)[None]
        verdict = verify(
            tree, output.top_ids[..., 0], output.logits, self.sampling, u, self.seen, max_depth=self.path_length - 1
        )
        following = tokens_after_path(tree, verdict)
        if self.vocab.observes:
            self.vocab.learn(observation_of(tree, verdict, output.top_ids, following))
        accepted_pos = verdict.accepted_pos[0]
        self.target.cache.compact_behind(self.length, accepted_pos)
        features = output.features.index_select(1, accepted_pos)
        memory = self.drafter.memory()
        self.state.copy_(self.drafter.extend_at(following, features, verdict.num_accepted, place, memory))
        self.root_id.copy_(verdict.next_id[:, None])
        self.length += verdict.num_accepted
        self.num_generated += verdict.num_accepted
        if self.seen is not None:
            self.seen.scatter_(1, following, True)
        num_lacking = None if self.adaptive is None else self.adaptive.num_lacking
        count = self.vocab.select().count
        self.outcome.copy_(pack_outcome(tree, verdict, following, output.top_values, count, num_lacking)[0])
        return StepRecord(tree, verdict, output.top_ids)
