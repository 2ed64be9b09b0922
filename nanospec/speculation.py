"""The speculative decoding loop: draft, verify, observe, keep what was accepted, again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from nanospec.decoding_step import DecodingStep
from nanospec.drafters.drafter import Drafter, Resumable, TakesFirstToken
from nanospec.drafters.joined_drafter import JoinedDrafter
from nanospec.headless import HeadlessProbe
from nanospec.invariants import check_vocabulary, checks_enabled
from nanospec.one_thread import steps_of_one_thread
from nanospec.prefix_cache import CacheHolder, PrefixCache
from nanospec.records import DraftTree, Observation, Verdict
from nanospec.request import Request
from nanospec.row_cost import row_cost
from nanospec.sampling import uniforms
from nanospec.stats import GenerationStats, StageClock
from nanospec.step_graphs import FixedSteps, bucketed_width
from nanospec.step_outcome import StepOutcome, observation_of, pack_outcome, tokens_after_path
from nanospec.target import Target, Verification
from nanospec.token_choice import NonFiniteLogitsError, check_finite_logits, choose_next
from nanospec.token_walk import TokenChooser, accept_chosen
from nanospec.tree_drafter import TreeGrower, cache_rows_needed
from nanospec.tree_growers import model_of
from nanospec.verifier import verify
from nanospec.vocab.adaptive import adaptive_part
from nanospec.vocab_selector import VocabSelector
from nanospec.weight_places import weight_state

# Which loop used a drafter last: its memory is that loop's.
_last_users: WeakKeyDictionary[Any, object] = WeakKeyDictionary()
WIDTH_MULTIPLE = 64  # a draft vocabulary is read in few widths: CPU kernels are prepared once for each


class SpeculativeLoop:
    """One request's run over a shared target and drafter. `steps` yields the new token ids of every target pass.

    The output is the target's own: the drafter and the vocabulary only decide how many tokens a pass yields.

    chooser: picks every token, in place of what the request says about sampling; its steps have no fixed shape.
    prefix: what an earlier request left in the caches is not read again, and this one leaves what it read.
    """

    def __init__(
        self,
        target: Target,
        tree_drafter: TreeGrower,
        vocab: VocabSelector,
        num_top: int,
        request: Request,
        stats: GenerationStats,
        clock: StageClock,
    ) -> None:
        self.target, self.tree_drafter, self.vocab = target, tree_drafter, vocab
        self.drafter, self.adaptive = tree_drafter.drafter, adaptive_part(vocab)
        self.request, self.stats, self.clock = request, stats, clock
        self.probe: HeadlessProbe | None = None
        self.fixed_steps: FixedSteps | None = None
        self.chooser: TokenChooser | None = None
        self.prefix: PrefixCache | None = None
        self.on_verdict: Callable[[DraftTree, Verdict, int], None] | None = None
        self.num_top = num_top if vocab.observes else 1
        self.path_length = tree_drafter.shape.depth + 1
        count = request.max_new_tokens + self.path_length
        self.uniforms = uniforms(request.sampling, count, target.device)
        self.num_generated = 0
        self.num_active = 1
        self.turn, self.marker = 0, object()
        self.seen: Tensor | None = None

    def steps(self) -> Iterator[list[int]]:
        """Token ids of the prompt pass (one), then of every step: accepted ones and the bonus token.

        Ends with the step that reaches `max_new_tokens`; that step may exceed it. RuntimeError if another thread is
        inside a step over this target or drafter.
        """
        return steps_of_one_thread(self._prompt_and_steps(), self.target, *_parts_of(self.drafter))

    @torch.inference_mode()
    def _prompt_and_steps(self) -> Iterator[list[int]]:
        root_id, state = self.read_prompt()
        yield [int(root_id)]
        self._check_turn()
        yield from self._steps(root_id, state) if self.fixed_steps is None else self._replays(root_id, state)

    def _steps(self, root_id: Tensor, state: Tensor) -> Iterator[list[int]]:
        """Steps of the shapes that each one needs, timed stage by stage."""
        while self.num_generated < self.request.max_new_tokens:
            with self.clock.stage("draft"):
                tree = self.tree_drafter.draft(root_id, state, self.vocab.select(self._width()))
                tree = self.target.ranks.agree_on(tree)
            if self.probe is not None:
                self.probe.draft(root_id, state)
            with self.clock.stage("verify"):
                needs_logits = self.chooser is not None or self.request.sampling.needs_full_logits
                output = self.target.judge(tree, self.num_top, needs_logits=needs_logits)
                output, verdict = self.target.settle(output, self._accept(tree, output))
            with self.clock.stage("vocabulary"):
                following = tokens_after_path(tree, verdict)
                if self.vocab.observes:
                    self.vocab.learn(observation_of(tree, verdict, output.top_ids, following))
            with self.clock.stage("other"):
                num_lacking = None if self.adaptive is None else self.adaptive.num_lacking
                count = self.vocab.select().count
                packed = pack_outcome(tree, verdict, following, output.top_values, count, num_lacking)
                outcome = StepOutcome.from_list(packed[0].tolist())  # the one transfer to the host
                num_accepted = self.count(outcome)
                self.target.cache.compact(verdict.accepted_pos[0], num_accepted)
                new_ids, root_id = following[:, :num_accepted], verdict.next_id[:, None]
                if self.seen is not None:
                    self.seen.scatter_(1, new_ids, True)
                if self.on_verdict is not None:
                    self.on_verdict(tree, verdict, num_accepted)
            yield outcome.token_ids
            self._check_turn()
            with self.clock.stage("draft"):
                state = self._extend(new_ids, output.features[:, verdict.accepted_pos[0, :num_accepted]])
                self._note_read(outcome, output.top_ids, verdict)

    def _replays(self, root_id: Tensor, state: Tensor) -> Iterator[list[int]]:
        """Steps of one fixed shape: whatever happens inside is one stage."""
        fixed_steps = self.fixed_steps
        assert fixed_steps is not None, "only called with them"
        fixed_steps.begin(root_id, state, self.uniforms, self.seen)
        while self.num_generated < self.request.max_new_tokens:
            with self.clock.stage("step"):
                outcome = fixed_steps.step()
                num_accepted = self.count(outcome)
                last = fixed_steps.last
                self._note_read(outcome, last.top_ids, last.verdict)
                if self.on_verdict is not None:
                    self.on_verdict(last.tree, last.verdict, num_accepted)
            yield outcome.token_ids
            self._check_turn()

    def _check_turn(self) -> None:
        """RuntimeError if another request has taken the caches of the target or the drafter since this one began."""
        self.target.check_turn(self.turn)
        if any(_last_users.get(part) is not self.marker for part in _parts_of(self.drafter)):
            raise RuntimeError(
                "a request must run to its end or be dropped before another starts with the same drafter: "
                "this one was interrupted by another"
            )

    def decoding_step(self) -> DecodingStep:
        """The fixed-shape step of what this loop is made of. Raises as `DecodingStep`."""
        return DecodingStep(self.target, self.tree_drafter, self.vocab, self.num_top, self.request.sampling)

    def read_prompt(self, num_behind: int | None = None) -> tuple[Tensor, Tensor]:
        """The root int64 [1, 1], the first token of the output, and the drafter's state [1, 1, D] after it.

        num_behind: rows behind the prompt that the caches must have; None: what the whole request may need.
        Raises NonFiniteLogitsError for logits that allow no first token, ValueError where the processes that share a
        tensor-parallel target were not asked for the same.
        """
        request, target = self.request, self.target
        with self.clock.stage("prefill"):
            shape = self.tree_drafter.shape
            target.ranks.check_same("request", lambda: (*request.parts(), self.vocab.name, shape, self.num_top))
            (self.uniforms,) = target.ranks.agree(self.uniforms)
            input_ids = request.input_ids
            num_tree_rows = cache_rows_needed(shape)
            if num_behind is None:
                num_behind = request.max_new_tokens + self.path_length + num_tree_rows
            capacity = input_ids.shape[1] + num_behind
            if self.fixed_steps is not None or self.prefix is not None:  # caches that grow seldom
                capacity = bucketed_width(capacity)
            num_held = self.stats.cached_tokens = self._take_caches(capacity)
            self.stats.prompt_tokens = input_ids.shape[1]
            if self.adaptive is not None:
                self.adaptive.price_rows(row_cost(target, self.drafter, shape))
            self.vocab.reset()
            prefill = target.prefill(input_ids[:, num_held:], self._num_observed)
            if request.sampling.repetition_penalty != 1.0:
                self.seen = torch.zeros(1, target.vocab_size, dtype=torch.bool, device=target.device)
                self.seen.scatter_(1, input_ids, True)
            next_id, largest = self._choose_first(prefill.last_logits)
            next_id, largest, top_ids = target.ranks.agree(next_id, largest, prefill.top_ids)
            check_finite_logits(float(largest), input_ids.shape[1] - 1)
            root_id = next_id[:, None]
            following = torch.cat((input_ids[:, 1:], root_id), 1)
            if self.prefix is not None and num_held:
                top_ids = torch.cat((self.prefix.top_ids(), top_ids))
            if self.vocab.observes:
                self.vocab.learn(Observation(input_ids, top_ids[None], following))
            if num_held == 0 and isinstance(self.drafter, TakesFirstToken):
                self.drafter.begin(input_ids[:, :1])
            state = self.drafter.extend(following[:, num_held:], prefill.features)
            if self.prefix is not None and self.prefix.owner is self.marker:
                self.prefix.begin(int(input_ids[0, 0]), following[0].tolist(), top_ids)
            self.num_active = int(self.vocab.select(None).count.max())
            if self.seen is not None:
                self.seen.scatter_(1, root_id, True)
        self.num_generated, self.stats.target_passes = 1, 1
        return root_id, state

    @property
    def _num_observed(self) -> int:
        """Best ids of the target after every position that the vocabulary learns from."""
        return self.num_top if self.vocab.observes else 0

    def _take_caches(self, capacity: int) -> int:
        """The caches are this request's from now on, with room for `capacity` tokens. Returns how many tokens of its
        prompt they hold already."""
        prefix = self.prefix
        if prefix is not None:
            prompt = self.request.input_ids[0].tolist()
            num_shared = prefix.num_shared(prompt) if prefix.holder == self._holder() else 0
            # Before anything is cut: whose text this was notes no more, and an error below leaves text of nobody.
            prefix.owner, prefix.holder = self.marker, None
            prefix.cut(num_shared)
        for part in _parts_of(self.drafter):
            _last_users[part] = self.marker
        num_held = 0 if prefix is None else self._resume(len(prefix), capacity)
        if num_held == 0:
            self.turn = self.target.reset(capacity)
            self.drafter.reset(capacity)
        if prefix is not None:
            prefix.cut(num_held)
            prefix.holder = self._holder()
        return num_held

    def _resume(self, num_tokens: int, capacity: int) -> int:
        """How many of the first `num_tokens` positions stay in both caches, with room for `capacity`; 0: reset them."""
        if not num_tokens or not isinstance(self.drafter, Resumable):
            return 0
        try:
            num_held = self.drafter.resume(num_tokens, capacity)
            if num_held:
                self.turn = self.target.resume(num_held, capacity)
        except (MemoryError, torch.OutOfMemoryError):  # no room for a larger cache beside the old one
            return 0
        return num_held

    def _holder(self) -> CacheHolder:
        """Whose text lies in the caches of target and drafter now, and what is kept beside it."""
        models = self.target.model, model_of(self.drafter)
        users = {_last_users.get(part) for part in _parts_of(self.drafter)}
        return CacheHolder(
            ref(self.target.cache),
            self.target.cache.num_resets,
            users.pop() if len(users) == 1 else None,
            weight_state(*models),
            self._num_observed,
        )

    def _note_read(self, outcome: StepOutcome, top_ids: Tensor, verdict: Verdict) -> None:
        """Target and drafter have taken in the accepted path of a step; top_ids int64 [1, T, k] at the nodes."""
        if self.prefix is not None and self.prefix.owner is self.marker:
            path = verdict.accepted_pos[0, : outcome.num_accepted]
            self.prefix.append(outcome.token_ids, top_ids[0, :, : self._num_observed].index_select(0, path))

    def _choose_first(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """As `choose_next`, of the logits [1, V] after the prompt."""
        if self.chooser is None:
            return choose_next(logits, self.request.sampling, self.uniforms[:1], self.seen)
        return torch.tensor([self.chooser.choose(logits)], device=logits.device), logits.amax(-1)

    def _accept(self, tree: DraftTree, output: Verification) -> Verdict:
        if self.chooser is not None:
            return accept_chosen(tree, output.logits, self.chooser, self.path_length - 1)
        sampling = self.request.sampling
        u = self.uniforms[None, self.num_generated : self.num_generated + self.path_length]
        return verify(
            tree, output.top_ids[..., 0], output.logits, sampling, u, self.seen, max_depth=self.path_length - 1
        )

    def _width(self) -> int:
        """Columns to read of the draft vocabulary: all active ones and as many as the tree has children per node."""
        return max(-(-self.num_active // WIDTH_MULTIPLE) * WIDTH_MULTIPLE, self.tree_drafter.shape.branching)

    def _extend(self, new_ids: Tensor, features: Tensor) -> Tensor:
        if self.probe is None:
            return self.drafter.extend(new_ids, features)
        with self.probe.timed():
            return self.drafter.extend(new_ids, features)

    def _note_failed_draft(self) -> None:
        """There were ids to score and none got a finite score: this step was plain decoding."""
        self.stats.failed_drafts += 1
        if self.stats.failed_drafts == 1:
            warnings.warn(
                f"the drafter gave no active id a finite score at step {self.stats.steps} (it has none, or its token "
                "map lacks these ids): the output stays right, but such steps yield one token each",
                RuntimeWarning,
                stacklevel=2,
            )

    def count(self, outcome: StepOutcome) -> int:
        """Takes the outcome of a step to the books; the number of accepted nodes.

        Raises NonFiniteLogitsError naming the position after which the target's logits were not finite.
        """
        if outcome.bad_node >= 0:
            position = self.request.input_ids.shape[1] + self.num_generated - 1 + outcome.bad_node
            raise NonFiniteLogitsError(position)
        self.stats.steps += 1
        self.stats.target_passes += 1
        if outcome.num_drafted == 0 and self.num_active > 0:
            self._note_failed_draft()
        if checks_enabled():
            check_vocabulary(self.vocab)
        self.stats.step_tokens += outcome.num_accepted
        self.stats.active_rows += self.num_active
        self.num_active = outcome.num_active
        if self.adaptive is not None:
            num_added = self.adaptive.adapt(outcome.num_lacking, outcome.num_accepted)
            self.num_active = min(self.num_active + num_added, self.adaptive.capacity)
        self.num_generated += outcome.num_accepted
        return outcome.num_accepted


def _parts_of(drafter: Drafter) -> tuple[Drafter, ...]:
    """The drafter, and what it is joined from."""
    return (drafter, drafter.model, drafter.lookup) if isinstance(drafter, JoinedDrafter) else (drafter,)
