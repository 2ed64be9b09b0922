"""Plain decoding by the same target, cache and token choice: the baseline and the meaning of exactness."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nanospec.one_thread import steps_of_one_thread
from nanospec.ops.blocked_topk import blocked_topk
from nanospec.request import Request
from nanospec.result import Candidates
from nanospec.sampling import uniforms
from nanospec.stats import GenerationStats, StageClock
from nanospec.target import Target
from nanospec.token_choice import check_finite_logits, choose_next

NUM_CANDIDATES = 8


class AutoregressiveLoop:
    """One target pass per token. With `keep_candidates` the best ids of every position are kept."""

    def __init__(
        self, target: Target, request: Request, stats: GenerationStats, clock: StageClock, keep_candidates: bool = False
    ) -> None:
        self.target, self.request, self.stats, self.clock = target, request, stats, clock
        self.candidates: list[Candidates] | None = [] if keep_candidates else None

    def steps(self) -> Iterator[list[int]]:
        """One token id per pass. RuntimeError if another thread is inside a step over this target."""
        return steps_of_one_thread(self._steps(), self.target)

    @torch.inference_mode()
    def _steps(self) -> Iterator[list[int]]:
        request, target = self.request, self.target
        target.ranks.check_same("request", request.parts)
        (u,) = target.ranks.agree(uniforms(request.sampling, request.max_new_tokens + 1, target.device))
        seen, self.stats.prompt_tokens = None, request.input_ids.shape[1]
        with self.clock.stage("prefill"):
            turn = target.reset(request.input_ids.shape[1] + request.max_new_tokens + 1)
            logits = target.prefill(request.input_ids).last_logits
            if request.sampling.repetition_penalty != 1.0:
                seen = torch.zeros(1, target.vocab_size, dtype=torch.bool, device=target.device)
                seen.scatter_(1, request.input_ids, True)
            token_id = self._choose(logits, u[:1], seen, 0)
        self.stats.target_passes += 1
        num_generated = 1
        self._keep_candidates(logits)
        yield [int(token_id)]
        while num_generated < request.max_new_tokens:
            target.check_turn(turn)
            with self.clock.stage("verify"):
                if seen is not None:
                    seen.scatter_(1, token_id, True)
                logits = target.decode(token_id)
                token_id = self._choose(logits, u[num_generated : num_generated + 1], seen, num_generated)
            num_generated += 1
            self.stats.target_passes += 1
            self.stats.steps += 1
            self.stats.step_tokens += 1
            self._keep_candidates(logits)
            yield [int(token_id)]

    def _choose(self, logits: Tensor, u: Tensor, seen: Tensor | None, num_generated: int) -> Tensor:
        token_id, largest = choose_next(logits, self.request.sampling, u, seen)
        token_id, largest = self.target.ranks.agree(token_id, largest)
        check_finite_logits(float(largest), self.request.input_ids.shape[1] + num_generated - 1)
        return token_id[:, None]

    def _keep_candidates(self, logits: Tensor) -> None:
        if self.candidates is not None:
            values, ids = blocked_topk(logits, min(NUM_CANDIDATES, logits.shape[1]))
            self.candidates.append(Candidates(ids[0].tolist(), values[0].double().tolist()))
