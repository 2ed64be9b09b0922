"""What a batch holds on the device: for every row the caches, the draft vocabulary and the state of one request."""

from __future__ import annotations

import torch
from torch import Tensor

from nanospec.drafters.eagle import EagleDrafter
from nanospec.kv_cache import KVCache
from nanospec.speculation import SpeculativeLoop
from nanospec.target import Target
from nanospec.vocab.batching import copy_sequence, for_batch, sequences
from nanospec.vocab_selector import VocabSelector


class BatchRows:
    """`max_batch` (B) rows over the modules of a decoder. Requests hold the first rows, without gaps.

    path_length (L)  nodes of the longest path, the root included

    root_id int64 [B, 1]       the last certain token
    state [B, 1, D]            the drafter's after it
    length int64 [B]           certain tokens in the caches
    num_generated int64 [B]    tokens of the output
    uniforms float64 [B, n]    the numbers that pick them
    seen bool [B, V] or None   ids of prompt and output; there as soon as a request has a repetition penalty
    """

    def __init__(
        self, target: Target, drafter: EagleDrafter, vocab: VocabSelector, max_batch: int, path_length: int
    ) -> None:
        self.max_batch = max_batch
        device, num_uniforms = target.device, target.context_window + path_length
        with torch.inference_mode(False):  # ordinary tensors, writable in and outside inference mode
            self.target, self.drafter = target.for_batch(max_batch), drafter.with_own_cache(max_batch)
            self.vocab = for_batch(vocab, max_batch)
            self.root_id = torch.zeros(max_batch, 1, dtype=torch.int64, device=device)
            self.state = torch.zeros(max_batch, 1, drafter.state_size, dtype=drafter.dtype, device=device)
            self.length, self.num_generated = torch.zeros(2, max_batch, dtype=torch.int64, device=device)
            self.uniforms = torch.zeros(max_batch, num_uniforms, dtype=torch.float64, device=device)
        self.seen: Tensor | None = None

    def grow(self, capacity: int) -> None:
        """Room for `capacity` tokens in every row."""
        self.target.cache.grow(capacity)
        self.drafter.grow(capacity)

    def vocab_of(self, row: int) -> VocabSelector:
        """The draft vocabulary of one row."""
        return sequences(self.vocab, row, row + 1)

    def put(self, row: int, loop: SpeculativeLoop, root_id: Tensor, state: Tensor) -> None:
        """Take over a request after its prompt, from the caches that `loop` read it into; its vocabulary is `vocab_of`
        the row."""
        prompt_drafter = loop.drafter
        assert isinstance(prompt_drafter, EagleDrafter), "refused before"
        self.target.cache.put(row, loop.target.cache)
        self.drafter.cache.put(row, prompt_drafter.cache)
        self.root_id[row], self.state[row] = root_id[0], state[0]
        self.length[row] = loop.target.cache.length
        self.num_generated[row] = 1
        self.uniforms[row, : loop.uniforms.shape[0]] = loop.uniforms
        if loop.seen is not None:
            self._make_seen(loop.seen)[row] = loop.seen[0]

    def move(self, source: int, destination: int) -> None:
        """The request of row `source` goes on in row `destination`."""
        for cache in self._caches():
            cache.copy_sequence(source, destination)
        copy_sequence(self.vocab, source, destination)
        tables = (self.root_id, self.state, self.length, self.num_generated, self.uniforms, self.seen)
        for table in tables:
            if table is not None:
                table[destination] = table[source]

    def _caches(self) -> tuple[KVCache, KVCache]:
        return self.target.cache, self.drafter.cache

    def _make_seen(self, like: Tensor) -> Tensor:
        if self.seen is None:
            with torch.inference_mode(False):
                self.seen = like.new_zeros(self.max_batch, like.shape[1])
        return self.seen
