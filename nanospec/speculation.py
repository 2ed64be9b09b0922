"""The speculative decoding loop: draft, verify, observe, keep what was accepted, again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from nanospec.headless import HeadlessProbe
from nanospec.records import DraftTree, Verdict
from nanospec.request import Request
from nanospec.sampling import uniforms
from nanospec.stats import GenerationStats, StageClock
from nanospec.target import Target, Verification
from nanospec.token_choice import NonFiniteLogitsError, check_finite_logits, choose_next
from nanospec.tree_drafter import TreeDrafter
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
        tree_drafter: TreeDrafter,
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
        self.seen: Tensor | None = None

    @torch.inference_mode()
    def steps(self) -> Iterator[list[int]]:
        """Token ids of the prompt pass (one), then of every step (accepted ones and the bonus token), without end."""
        root_id, state = self._prefill()
        yield [int(root_id)]
        while True:
            with self.clock.stage("draft"):
                draft_vocab = self.vocab.select(-(-self.num_active // WIDTH_MULTIPLE) * WIDTH_MULTIPLE)
                tree = self.tree_drafter.draft(root_id, state, draft_vocab)
            if self.probe is not None:
                self.probe.draft(root_id, state)
            with self.clock.stage("verify"):
                output = self.target.judge(tree, self.num_top)
                verdict = self._accept(tree, output)
            with self.clock.stage("vocabulary"):
                if self.vocab.observes:
                    self.vocab.observe(torch.cat((tree.token_ids, output.top_ids.flip(-1).flatten(1)), 1))
                count = self.vocab.select(None).count
            with self.clock.stage("other"):
                num_accepted, next_id, num_active = self._read_back(verdict, count, output.top_values)
                path = verdict.accepted_pos[0, :num_accepted]
                self.target.cache.compact(verdict.accepted_pos[0], num_accepted)
                root_id = verdict.next_id[:, None]
                new_ids = torch.cat((tree.token_ids[:, path[1:]], root_id), 1)
                emitted = new_ids[0].tolist()
                self._count(emitted, num_active)
                if self.on_verdict is not None:
                    self.on_verdict(tree, verdict, num_accepted)
            yield emitted
            with self.clock.stage("draft"):
                state = self._extend(new_ids, output.features[:, path])

    def _prefill(self) -> tuple[Tensor, Tensor]:
        request, target = self.request, self.target
        with self.clock.stage("prefill"):
            input_ids = request.input_ids
            capacity = input_ids.shape[1] + request.max_new_tokens + self.path_length + self.tree_drafter.capacity
            target.reset(capacity)
            self.drafter.reset(capacity)
            self.vocab.reset()
            prefill = target.prefill(input_ids, self.num_top if self.vocab.observes else 0)
            if self.vocab.observes:
                in_time_order = torch.cat((input_ids[0, :, None], prefill.top_ids.flip(-1)), 1)
                self.vocab.observe(in_time_order.flatten()[None])
            if request.sampling.repetition_penalty != 1.0:
                self.seen = torch.zeros(1, target.vocab_size, dtype=torch.bool, device=target.device)
                self.seen.scatter_(1, input_ids, True)
            next_id, largest = choose_next(prefill.last_logits, request.sampling, self.uniforms[:1], self.seen)
            check_finite_logits(float(largest), input_ids.shape[1] - 1)
            root_id = next_id[:, None]
            following = torch.cat((input_ids[:, 1:], root_id), 1)
            state = self.drafter.extend(following, prefill.features)
            self.num_active = int(self.vocab.select(None).count.max())
        self._remember([int(root_id)])
        self.stats.target_passes += 1
        return root_id, state

    def _accept(self, tree: DraftTree, output: Verification) -> Verdict:
        sampling = self.request.sampling
        u = self.uniforms[None, self.num_generated : self.num_generated + self.path_length]
        return verify(
            tree, output.top_ids[..., 0], output.logits, sampling, u, self.seen, max_depth=self.path_length - 1
        )

    def _read_back(self, verdict: Verdict, count: Tensor, top_values: Tensor) -> tuple[int, int, int]:
        """The one transfer to the host of a step. Non-finite logits show in the largest of every node."""
        finite = top_values[..., 0].isfinite().all()
        packed = torch.stack((verdict.num_accepted[0], verdict.next_id[0], count.max().long(), finite.long()))
        num_accepted, next_id, num_active, is_finite = packed.tolist()
        if not is_finite:
            raise NonFiniteLogitsError(self.request.input_ids.shape[1] + self.num_generated - 1)
        return num_accepted, next_id, num_active

    def _extend(self, new_ids: Tensor, features: Tensor) -> Tensor:
        if self.probe is None:
            return self.drafter.extend(new_ids, features)
        with self.probe.timed():
            return self.drafter.extend(new_ids, features)

    def _count(self, emitted: list[int], num_active: int) -> None:
        self.stats.steps += 1
        self.stats.target_passes += 1
        self.stats.step_tokens += len(emitted)
        self.stats.active_rows += self.num_active
        self.num_active = num_active
        self._remember(emitted)

    def _remember(self, emitted: list[int]) -> None:
        self.num_generated += len(emitted)
        if self.seen is not None:
            self.seen[0, emitted] = True
