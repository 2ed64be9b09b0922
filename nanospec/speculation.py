"""The speculative decoding loop: draft, verify, observe, keep what was accepted, again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from nanospec.compiled_drafter import CompiledTreeDrafter
from nanospec.headless import HeadlessProbe
from nanospec.records import DraftTree, Verdict
from nanospec.request import Request
from nanospec.sampling import uniforms
from nanospec.stats import GenerationStats, StageClock
from nanospec.target import Target, Verification
from nanospec.token_choice import NonFiniteLogitsError, check_finite_logits, choose_next
from nanospec.tree_drafter import TreeDrafter, cache_rows_needed
from nanospec.verifier import verify
from nanospec.vocab_selector import VocabSelector

WIDTH_MULTIPLE = 64  # a draft vocabulary is read in few widths: CPU kernels are prepared once for each


class SpeculativeLoop:
    """One request's run over a shared target and drafter. `steps` yields the new token ids of every target pass.

    The output is the target's own: the drafter and the vocabulary only decide how many tokens a pass yields.
    """

    def __init__(
        self,
        target: Target,
        tree_drafter: TreeDrafter | CompiledTreeDrafter,
        vocab: VocabSelector,
        num_top: int,
        request: Request,
        stats: GenerationStats,
        clock: StageClock,
    ) -> None:
        self.target, self.tree_drafter, self.vocab = target, tree_drafter, vocab
        self.drafter = tree_drafter.drafter
        self.request, self.stats, self.clock = request, stats, clock
        self.probe: HeadlessProbe | None = None
        self.on_verdict: Callable[[DraftTree, Verdict, int], None] | None = None
        self.num_top = num_top if vocab.observes else 1
        self.path_length = tree_drafter.shape.depth + 1
        count = request.max_new_tokens + self.path_length
        self.uniforms = uniforms(request.sampling, count, target.device)
        self.num_generated = 0
        self.num_active = 1
        self.turn = 0
        self.seen: Tensor | None = None

    @torch.inference_mode()
    def steps(self) -> Iterator[list[int]]:
        """Token ids of the prompt pass (one), then of every step: accepted ones and the bonus token.

        Ends with the step that reaches `max_new_tokens`; that step may exceed it.
        """
        root_id, state = self._prefill()
        yield [int(root_id)]
        self.target.check_turn(self.turn)
        while self.num_generated < self.request.max_new_tokens:
            with self.clock.stage("draft"):
                tree = self.tree_drafter.draft(root_id, state, self.vocab.select(self._width()))
            if self.probe is not None:
                self.probe.draft(root_id, state)
            with self.clock.stage("verify"):
                output = self.target.judge(tree, self.num_top)
                verdict = self._accept(tree, output)
            with self.clock.stage("vocabulary"):
                if self.vocab.observes:
                    self.vocab.observe(_by_likelihood(output.top_ids, tree.token_ids))
            with self.clock.stage("other"):
                following = _tokens_after_path(tree, verdict)
                num_accepted, num_active, emitted = self._read_back(verdict, following, output.top_values)
                self.target.cache.compact(verdict.accepted_pos[0], num_accepted)
                new_ids, root_id = following[None, :num_accepted], verdict.next_id[:, None]
                self._count(emitted, new_ids, num_active)
                if self.on_verdict is not None:
                    self.on_verdict(tree, verdict, num_accepted)
            yield emitted
            self.target.check_turn(self.turn)
            with self.clock.stage("draft"):
                state = self._extend(new_ids, output.features[:, verdict.accepted_pos[0, :num_accepted]])

    def _prefill(self) -> tuple[Tensor, Tensor]:
        request, target = self.request, self.target
        with self.clock.stage("prefill"):
            input_ids = request.input_ids
            num_tree_rows = cache_rows_needed(self.tree_drafter.shape)
            capacity = input_ids.shape[1] + request.max_new_tokens + self.path_length + num_tree_rows
            self.turn = target.reset(capacity)
            self.drafter.reset(capacity)
            self.vocab.reset()
            prefill = target.prefill(input_ids, self.num_top if self.vocab.observes else 0)
            if self.vocab.observes:
                self.vocab.observe(_by_likelihood(prefill.top_ids[None], input_ids))
            if request.sampling.repetition_penalty != 1.0:
                self.seen = torch.zeros(1, target.vocab_size, dtype=torch.bool, device=target.device)
                self.seen.scatter_(1, input_ids, True)
            next_id, largest = choose_next(prefill.last_logits, request.sampling, self.uniforms[:1], self.seen)
            check_finite_logits(float(largest), input_ids.shape[1] - 1)
            root_id = next_id[:, None]
            following = torch.cat((input_ids[:, 1:], root_id), 1)
            state = self.drafter.extend(following, prefill.features)
            self.num_active = int(self.vocab.select(None).count.max())
            if self.seen is not None:
                self.seen.scatter_(1, root_id, True)
        self.num_generated, self.stats.target_passes = 1, 1
        return root_id, state

    def _accept(self, tree: DraftTree, output: Verification) -> Verdict:
        sampling = self.request.sampling
        u = self.uniforms[None, self.num_generated : self.num_generated + self.path_length]
        return verify(
            tree, output.top_ids[..., 0], output.logits, sampling, u, self.seen, max_depth=self.path_length - 1
        )

    def _read_back(self, verdict: Verdict, following: Tensor, top_values: Tensor) -> tuple[int, int, list[int]]:
        """The one transfer to the host of a step: accepted nodes, active rows, new token ids.

        Non-finite logits show in the largest one; what the target thinks of rejected nodes is nobody's business.
        """
        is_bad = ~top_values[0, verdict.accepted_pos[0], 0].isfinite()
        first_bad = torch.where(is_bad.any(), is_bad.int().argmax(), -1)
        num_active = self.vocab.select(None).count.max().long()
        packed = torch.cat((verdict.num_accepted, torch.stack((num_active, first_bad)), following)).tolist()
        num_accepted, active, bad_node = packed[:3]
        if bad_node >= 0:
            raise NonFiniteLogitsError(self.request.input_ids.shape[1] + self.num_generated - 1 + bad_node)
        return num_accepted, active, packed[3 : 3 + num_accepted]

    def _width(self) -> int:
        """Columns to read of the draft vocabulary: all active ones and as many as the tree has children per node."""
        return max(-(-self.num_active // WIDTH_MULTIPLE) * WIDTH_MULTIPLE, self.tree_drafter.shape.branching)

    def _extend(self, new_ids: Tensor, features: Tensor) -> Tensor:
        if self.probe is None:
            return self.drafter.extend(new_ids, features)
        with self.probe.timed():
            return self.drafter.extend(new_ids, features)

    def _count(self, emitted: list[int], new_ids: Tensor, num_active: int) -> None:
        self.stats.steps += 1
        self.stats.target_passes += 1
        self.stats.step_tokens += len(emitted)
        self.stats.active_rows += self.num_active
        self.num_active = num_active
        self.num_generated += len(emitted)
        if self.seen is not None:
            self.seen.scatter_(1, new_ids, True)


def _by_likelihood(top_ids: Tensor, token_ids: Tensor) -> Tensor:
    """Candidates of one update, int64 [B, n], the ones to keep longest last: what stood in the text or the tree after
    all suggestions [B, T, k], and of these the first choice of every position after all second choices."""
    return torch.cat((top_ids.flip(-1).mT.flatten(1), token_ids), 1)


def _tokens_after_path(tree: DraftTree, verdict: Verdict) -> Tensor:
    """int64 [L]: the token after each node of the accepted path, the bonus token after the last; then rubbish.

    Example: tokens 7, 8, 9 on the path (the root is 7) and bonus token 5 give 8, 9, 5.
    """
    path_ids = tree.token_ids[0, verdict.accepted_pos[0]]
    return path_ids.roll(-1).scatter(0, verdict.num_accepted - 1, verdict.next_id)
