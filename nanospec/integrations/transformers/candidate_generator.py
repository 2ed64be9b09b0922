"""Candidates for transformers' assisted generation from an assistant that scores a draft vocabulary only."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.candidate_generator import CandidateGenerator

from nanospec.drafters.causal_lm import CausalLMDrafter
from nanospec.records import Observation
from nanospec.tree_drafter import TreeDrafter
from nanospec.tree_shape import TreeShape
from nanospec.vocab.adaptive import adaptive_part, policy_below
from nanospec.vocab.routed import RoutedVocab
from nanospec.vocab.router_added import RouterAddedVocab
from nanospec.vocab_selector import VocabSelector, build_reduced_vocab, build_vocab_selector

DEFAULT_NUM_CANDIDATES, DEFAULT_NUM_TOP = 5, 16


class GatheredCandidateGenerator(CandidateGenerator):
    """For one call of `generate`: greedy chains of an assistant whose head is gathered.

    assistant       a causal language model with the target's tokenizer, of a family that could be a `Target`
    vocab_size      ids that the target scores (V)
    num_candidates  tokens of a chain, at most
    max_length      of the sequence; None: the assistant's context window
    eos_ids         a chain ends before any of these: what follows them is nobody's business
    num_top         target suggestions per position that enter an in-context vocabulary
    vocab, capacity, frequent_ids   as of `SpeculativeDecoder`

    Candidates come without logits: transformers then keeps those that are the target's own choices, which leaves its
    output what it is, greedy or sampled.

    Raises TypeError or ValueError naming the argument, what it must be and what it was, NotImplementedError for a
    vocabulary that is adaptive or routed; as `CausalLMDrafter` and `build_vocab_selector`.
    """

    requires_model_outputs = False

    def __init__(
        self,
        assistant: PreTrainedModel,
        vocab_size: int,
        vocab: str | VocabSelector = "in-context",
        num_candidates: int = DEFAULT_NUM_CANDIDATES,
        max_length: int | None = None,
        eos_ids: Collection[int] = (),
        num_top: int = DEFAULT_NUM_TOP,
        capacity: int = 3072,
        frequent_ids: Tensor | None = None,
    ) -> None:
        if not isinstance(assistant, PreTrainedModel):
            raise TypeError(f"assistant must be a PreTrainedModel, got {type(assistant).__name__}")
        if any(module.training for module in assistant.modules()):
            raise ValueError("assistant must be in evaluation mode, got one in training mode: call .eval() first")
        for name, value in (("num_candidates", num_candidates), ("num_top", num_top)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
        self.drafter = CausalLMDrafter(assistant, vocab_size)
        weight, ids = self.drafter.head.weight, self.drafter.target_ids
        capacity = min(capacity, weight.shape[0])
        self.vocab: VocabSelector
        if ids is None:
            self.vocab = build_vocab_selector(vocab, weight, capacity, frequent_ids=frequent_ids)
        else:
            self.vocab = build_reduced_vocab(vocab, weight, ids, vocab_size, capacity, frequent_ids)
        if adaptive_part(self.vocab) or isinstance(policy_below(self.vocab), RoutedVocab | RouterAddedVocab):
            raise NotImplementedError(f"vocab must not be adaptive or routed for an assistant, got {self.vocab.name!r}")
        self.num_candidates, self.num_top = num_candidates, min(num_top, vocab_size)
        window = self.drafter.body.context_window
        self.max_length = window if max_length is None else min(max_length, window)
        self.eos_ids = frozenset(eos_ids)
        self._num_read = 0
        self._judged: Tensor | None = None  # int64 [1, n]: what the target reads next, the last certain token first

    @torch.no_grad()
    def get_candidates(self, input_ids: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        """input_ids int64 [1, n], all of it certain, with up to `num_candidates` tokens behind; no logits.

        Raises NotImplementedError for a batch.
        """
        if input_ids.shape[0] != 1:
            raise NotImplementedError(f"input_ids must hold one sequence, got a batch of {input_ids.shape[0]}")
        length = input_ids.shape[1]
        num_new = min(self.num_candidates, self.max_length - length - 1)
        chain = input_ids.new_empty(1, 0)
        if num_new > 0:
            text = input_ids.to(self.drafter.body.device)
            state = self._read(text)
            drafter = TreeDrafter(self.drafter, TreeShape(num_new, 1, num_new + 1))
            chain = self._until_end(drafter.draft(text[:, -1:], state, self.vocab.select()).token_ids[:, 1:])
        candidates = torch.cat((input_ids, chain.to(input_ids.device)), 1)
        self._judged = candidates[:, length - 1 :]
        return candidates, None

    @torch.no_grad()
    def update_candidate_strategy(self, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        """Shows the vocabulary what the target made of the candidates.

        input_ids int64 [1, n] ends with the `num_matches` accepted ones and one token more; scores [1, m, V] are the
        target's after the last certain token before and after every candidate.
        """
        if not self.vocab.observes or self._judged is None:
            return
        device = self.drafter.body.device
        read = self._judged.to(device)
        top_ids = scores[:, : read.shape[1]].topk(self.num_top).indices.to(device)
        followed = torch.full_like(read, -1)
        kept = int(num_matches) + 1
        followed[:, :kept] = input_ids[:, input_ids.shape[1] - kept :].to(device)
        self.vocab.learn(Observation(read, top_ids, followed))

    def _read(self, text: Tensor) -> Tensor:
        """The assistant's state after `text` int64 [1, n], of which it has read a part."""
        if self._num_read == 0:
            self.drafter.reset(self.max_length + self.num_candidates)
            self.vocab.reset()
            if self.vocab.observes:
                following = torch.cat((text[:, 1:], torch.full_like(text[:, :1], -1)), 1)
                self.vocab.learn(Observation(text, text.new_empty(*text.shape, 0), following))
        new_ids = text[:, self._num_read :]
        self._num_read = text.shape[1]
        no_features = self.drafter.head.weight.new_empty(1, new_ids.shape[1], 0)
        return self.drafter.extend(new_ids, no_features)

    def _until_end(self, chain: Tensor) -> Tensor:
        """chain int64 [1, n] up to where a text may end, or where nothing could be drafted."""
        ends = [place for place, token_id in enumerate(chain[0].tolist()) if token_id < 0 or token_id in self.eos_ids]
        return chain[:, : ends[0]] if ends else chain
