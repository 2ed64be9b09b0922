"""One decoding step of all rows that hold a request: one draft, one target pass, then each row keeps its own path.

Shapes depend on the number of rows, the tree and the width alone, and nothing waits for the device: as a
`DecodingStep`, whose stages these are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanospec.batch.row_choice import RowChoice, verify_rows
from nanospec.batch.rows import BatchRows
from nanospec.kv_cache import CachePlace
from nanospec.static_tree_drafter import StaticTreeDrafter
from nanospec.stats import StageClock
from nanospec.step_outcome import observation_of, pack_outcome, tokens_after_path
from nanospec.tree_drafter import TreeDrafter
from nanospec.vocab.batching import sequences


class BatchStep:
    """The step of a batch's rows with one grower; how many rows, how wide and how they choose differs from call to
    call."""

    def __init__(
        self, rows: BatchRows, grower: TreeDrafter | StaticTreeDrafter, num_top: int, clock: StageClock
    ) -> None:
        self.rows, self.grower, self.num_top, self.clock = rows, grower, num_top, clock
        self.path_length = grower.shape.depth + 1
        self.offsets = torch.arange(self.path_length, device=rows.target.device)
        self.vocabs = [sequences(rows.vocab, 0, num_rows) for num_rows in range(1, rows.max_batch + 1)]

    def run(
        self, num_rows: int, width: int, vocab_width: int, choice: RowChoice, temperature: float | Tensor
    ) -> Tensor:
        """int64 [num_rows, 5 + L], for `StepOutcome.from_list` row by row.

        width        rows of the caches to read: all certain tokens, the roots and one tree
        vocab_width  columns of the draft vocabularies to read, a bound of their counts
        temperature  of the drafts; float32 [num_rows, 1, 1] where rows differ
        """
        rows, target, drafter, vocab = self.rows, self.rows.target, self.rows.drafter, self.vocabs[num_rows - 1]
        root_id, state, length, num_generated = (
            x[:num_rows] for x in (rows.root_id, rows.state, rows.length, rows.num_generated)
        )
        seen, place = None if rows.seen is None else rows.seen[:num_rows], CachePlace(length, width)
        with self.clock.stage("draft"):
            self.grower.temperature = temperature
            tree = target.ranks.agree_on(self.grower.draft(root_id, state, vocab.select(vocab_width), place))
        with self.clock.stage("verify"):
            output = target.judge(tree, self.num_top, place)
            u = rows.uniforms[:num_rows].gather(1, num_generated[:, None] + self.offsets)
            output, verdict = target.settle(output, verify_rows(choice, tree, output, u, seen, self.path_length - 1))
        with self.clock.stage("vocabulary"):
            following = tokens_after_path(tree, verdict)
            if vocab.observes:
                vocab.learn(observation_of(tree, verdict, output.top_ids, following))
        with self.clock.stage("other"):
            outcome = pack_outcome(tree, verdict, following, output.top_values, vocab.select().count)
            target.cache.compact_behind(length, verdict.accepted_pos)
            if seen is not None:
                seen.scatter_(1, following, True)
        with self.clock.stage("draft"):
            index = verdict.accepted_pos[:, :, None].expand(-1, -1, output.features.shape[2])
            features = output.features.gather(1, index)
            state.copy_(drafter.extend_at(following, features, verdict.num_accepted, place, drafter.memory()))
        root_id.copy_(verdict.next_id[:, None])
        length += verdict.num_accepted
        num_generated += verdict.num_accepted
        return outcome
