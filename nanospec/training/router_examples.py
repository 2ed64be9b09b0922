"""What a router learns from: states of the drafter along real text, and what the target would say after them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nanospec.drafters.drafter import Drafter, HasHead, TakesFirstToken
from nanospec.drafters.prompt_lookup import PromptLookupDrafter
from nanospec.gathered_head import GatheredHead
from nanospec.ops.blocked_topk import blocked_topk
from nanospec.target import Target
from nanospec.training.corpus import read_records
from nanospec.vocab.full import FullVocab
from nanospec.vocab.reduced import head_positions

STRIDE = 8  # tokens from one chain of states to the next


class Document(NamedTuple):
    """token_ids int64 [n]; only what follows the first `num_prompt` of them is learnt from."""

    token_ids: Tensor
    num_prompt: int


class RouterExamples(NamedTuple):
    """N chains of states, each along L tokens of the text as a tree's levels would draft them.

    states    [N, L, D]        of the drafter at level 0 (after the root), 1, ..
    top_pos   int64 [N, L, k]  rows of the draft's head for the target's k best ids there, best first; -1: it has none
    next_pos  int64 [N, L]     the same for the token that really follows
    draft_pos int64 [N, L, m]  the drafter's own best rows, over its whole head; m may be 0
    """

    states: Tensor
    top_pos: Tensor
    next_pos: Tensor
    draft_pos: Tensor


def sample_records(path: Path, count: int, seed: int) -> list[dict]:
    """At most `count` records of a file of JSON lines, any as likely as another, in random order.

    Holds no more than those (reservoir sampling). Raises FileNotFoundError for a missing file, ValueError for one
    without records.
    """
    if not path.is_file():
        raise FileNotFoundError(f"corpus must be a file of JSON lines, got {path}")
    chance, kept = random.Random(seed), []
    for number, record in enumerate(read_records(path)):
        if number < count:
            kept.append(record)
        elif (place := chance.randrange(number + 1)) < count:
            kept[place] = record
    if not kept:
        raise ValueError(f"corpus must hold records, got none in {path}")
    chance.shuffle(kept)
    return kept


def documents(
    records: Iterable[dict], encode: Callable[[str], Tensor], tokenizer: PreTrainedTokenizerBase
) -> Iterator[Document]:
    """Records with `prompt` and `response` as documents; encode: a prompt's token ids, int64 [1, n], as for a request.

    Raises ValueError for a record without them.
    """
    for record in records:
        prompt, response = record.get("prompt"), record.get("response")
        if not isinstance(prompt, str) or not isinstance(response, str):
            raise ValueError(f"corpus records must have the texts 'prompt' and 'response', got {sorted(record)}")
        if not prompt or not response:
            continue
        head = encode(prompt)[0]
        tail = tokenizer(response, add_special_tokens=False, verbose=False)["input_ids"]
        yield Document(torch.cat((head, torch.tensor(tail, dtype=head.dtype, device=head.device))), head.shape[0])


def head_of(drafter: Drafter, target: Target) -> GatheredHead:
    """The head that drafts: the drafter's own where it has one. Raises TypeError for prompt lookup, which has none."""
    if isinstance(drafter, PromptLookupDrafter):
        raise TypeError(f"draft must score ids with a head, got {drafter.name}, which scores none")
    return drafter.head if isinstance(drafter, HasHead) else GatheredHead(target.head_weight, target.head_bias)


class ExampleReader:
    """Runs target and drafter over documents.

    num_levels  L, states per chain
    num_top     k, of the target's best ids
    num_draft   m, of the drafter's best rows: the whole head runs for them
    window      tokens of a document that are read at most
    """

    def __init__(
        self, target: Target, drafter: Drafter, num_levels: int, num_top: int, num_draft: int = 0, window: int = 512
    ) -> None:
        self.target, self.drafter = target, drafter
        self.num_levels, self.num_top, self.num_draft = num_levels, num_top, num_draft
        self.window = min(window, target.context_window - num_levels)
        ids = drafter.target_ids if isinstance(drafter, HasHead) else None
        self.row_of_id = None if ids is None else head_positions(ids, target.vocab_size)
        head = head_of(drafter, target)
        self.state_size, self.every_row = head.weight.shape[1], FullVocab(head.weight).select()

    @torch.no_grad()
    def read(
        self, texts: Iterable[Document], num_chains: int, on_chain: Callable[[], None] = lambda: None
    ) -> RouterExamples:
        """The first `num_chains` (N) examples, or all that the texts give; `on_chain` is called after each.

        Raises ValueError if the texts are too short to give any.
        """
        found = []
        for chain in islice((chain for text in texts for chain in self._chains(text)), num_chains):
            found.append(chain)
            on_chain()
        if not found:
            raise ValueError(f"corpus must hold responses of more than {self.num_levels} tokens, got none")
        return RouterExamples(*(torch.stack(column) for column in zip(*found, strict=True)))

    def _chains(self, text: Document) -> Iterator[RouterExamples]:
        """Chains [L, ..] behind every `STRIDE`-th token of the response."""
        tokens, levels = text.token_ids[None, : self.window], self.num_levels
        roots = range(max(text.num_prompt - 1, 1), tokens.shape[1] - levels, STRIDE)
        if not roots:
            return
        state, features, top_ids = self._begin(tokens, roots[0])
        for root in roots:
            if root > roots[0]:
                behind = slice(root - STRIDE, root)
                state = self.drafter.extend(tokens[:, root - STRIDE + 1 : root + 1], features[:, behind])
            top_pos, next_pos = self._rows_of(top_ids[root : root + levels]), self._rows_of(tokens[0, root + 1 :])
            states, draft_pos = self._states(state, tokens[:, root + 1 :])
            yield RouterExamples(states, top_pos, next_pos[:levels], draft_pos)

    def _begin(self, tokens: Tensor, root: int) -> tuple[Tensor, Tensor, Tensor]:
        """The drafter's state after token `root`, the target's features and best ids at all positions."""
        capacity = tokens.shape[1] + self.num_levels
        self.target.reset(capacity)
        self.drafter.reset(capacity)
        prefill = self.target.prefill(tokens, self.num_top)
        if isinstance(self.drafter, TakesFirstToken):
            self.drafter.begin(tokens[:, :1])
        state = self.drafter.extend(tokens[:, 1 : root + 1], prefill.features[:, :root])
        return state, prefill.features, prefill.top_ids

    def _states(self, root_state: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        """[L, D] on the CPU: the state after the root and after each of the tokens [1, n] that follow, drafted; int64
        [L, m]: the drafter's best rows there."""
        states = [root_state]
        for depth in range(1, self.num_levels):
            visible = root_state.new_ones(1, 1, depth, dtype=torch.bool)
            states.append(self.drafter.advance(following[:, depth - 1, None], states[-1], depth, visible))
        best = torch.empty(self.num_levels, 0, dtype=torch.int64)
        if self.num_draft:
            best = self._best_rows(states)
        return torch.cat([state[..., : self.state_size] for state in states], 1)[0].cpu(), best

    def _best_rows(self, states: list[Tensor]) -> Tensor:
        """[L, m] of L states [1, 1, .]: in one product, where they are of one width and so are scored alike."""
        alike = len({state.shape[-1] for state in states}) == 1
        batches = [torch.cat(states, 1)] if alike else states
        logits = torch.cat([self.drafter.logits(batch, self.every_row)[0] for batch in batches])
        return blocked_topk(logits, self.num_draft)[1].cpu()

    def _rows_of(self, ids: Tensor) -> Tensor:
        return (ids if self.row_of_id is None else self.row_of_id[ids]).cpu()
