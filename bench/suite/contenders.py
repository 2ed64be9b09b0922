"""Rows made ready to decode: drafters are loaded once, every row of our engine gets its tree, peers their settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from torch import Tensor
from transformers import PreTrainedModel

from bench.suite.decoded import Decode, Decoded
from bench.suite.peers import LOOKUP_TOKENS, as_published, load_assistant, peer
from bench.suite.rows import ASSISTED, LOOKUP, PAIR, PEERS, VLLM, VLLM_ROWS, Row, vocab_of
from bench.suite.vllm_peers import VllmPeers
from nanospec.checkpoints import load_drafter
from nanospec.cli.measure import AUTOREGRESSIVE
from nanospec.decode import SpeculativeDecoder
from nanospec.decoder_options import TreeArgument
from nanospec.drafters.drafter import Drafter, deepest_tree
from nanospec.result import GenerationResult
from nanospec.tree_growers import model_of
from nanospec.tree_shape import TreeShape, parse_tree_shape
from nanospec.tree_tuning import probe_prompts

OWN_TREES: Literal["auto"] = "auto"
ONE_TREE = "shared"
SHARED_IS_MEASURED_WITH = "in-context"
ASSISTANT = "assistant"


class Contenders:
    """What decodes, by row name, over the modules of `decoder`, the pair with its tokenizer.

    options  paths by option name, as rows need them
    tree     OWN_TREES: measured at start-up for every row; ONE_TREE: with the in-context vocabulary for all rows of a
             drafter; or a shape "DEPTH,BRANCHING,NODES" for all, cut where a drafter is not so deep. vLLM drafts a
             chain, DEPTH,1,DEPTH+1: of that depth, or measured for every row of its own
    vllm     what its rows need

    Raises what loading raises, and ValueError for a tree that cannot be read.
    """

    def __init__(
        self,
        decoder: SpeculativeDecoder,
        options: Mapping[str, str | None],
        tree: str = OWN_TREES,
        vllm: VllmPeers | None = None,
    ) -> None:
        self.decoder, self.options, self.tree, self.vllm = decoder, options, tree, vllm
        self._shape = None if tree in (OWN_TREES, ONE_TREE) else parse_tree_shape(tree)
        self._drafters: dict[str, Drafter] = {PAIR: decoder.drafter}
        self._shared: dict[str, TreeShape] = {}
        self._assistant: PreTrainedModel | None = None

    def plain(self, input_ids: Tensor, max_new_tokens: int, return_candidates: bool = False) -> GenerationResult:
        """Plain decoding, which every answer must equal."""
        return self.decoder.generate_autoregressive(
            input_ids, max_new_tokens=max_new_tokens, ignore_eos=True, return_candidates=return_candidates
        )

    def check(self, rows: Sequence[Row]) -> None:
        """Load and build what the rows need, so that whatever is wrong with it is said before anything is written."""
        for row in rows:
            if row.name == ASSISTED:
                self._load_assistant()
            elif row.drafter not in (None, VLLM):
                self.speculative(row, None if self._shape is None else self._find_tree(row))

    def find_trees(self, rows: Sequence[Row]) -> dict[str, TreeShape]:
        """The tree of every row that drafts one."""
        return {row.name: self._find_tree(row) for row in rows if row.drafter is not None}

    def build(self, rows: Sequence[Row], trees: Mapping[str, TreeShape]) -> dict[str, Decode]:
        """What decodes, in the order of the rows. Token ids go in and come out, of our engine as of the others."""
        return {row.name: self._build(row, trees) for row in rows}

    def close(self) -> None:
        """End the processes of peers."""
        if self.vllm is not None:
            self.vllm.close()

    def speculative(self, row: Row, tree: TreeArgument) -> SpeculativeDecoder:
        """The decoder of a row of our engine."""
        assert row.drafter is not None, f"{row.name} has no drafter"
        return self._decoder(row.drafter, vocab_of(row, self.options), tree)

    def _build(self, row: Row, trees: Mapping[str, TreeShape]) -> Decode:
        if row.name in VLLM_ROWS:
            assert self.vllm is not None, f"{row.name} is left out without vLLM"
            return self.vllm.row(row.name, trees[row.name].depth if row.name in trees else None)
        if row.name in PEERS:
            target = as_published(self.decoder.target.model)
            if row.name == ASSISTED:
                return peer(target, assistant_model=self._load_assistant())
            return peer(target, prompt_lookup_num_tokens=LOOKUP_TOKENS) if row.name == LOOKUP else peer(target)
        if row.name == AUTOREGRESSIVE:
            decoder = self._decoder(PAIR, "full", None)
            return engine_row(decoder.generate_autoregressive)
        return engine_row(self.speculative(row, trees[row.name]).generate)

    def _find_tree(self, row: Row) -> TreeShape:
        assert row.drafter is not None, f"{row.name} has no drafter"
        if row.drafter == VLLM:
            return self._find_chain(row)
        if self.tree == OWN_TREES:
            return self.speculative(row, OWN_TREES).tree
        if self.tree == ONE_TREE:
            if row.drafter not in self._shared:
                tuned = self._decoder(row.drafter, SHARED_IS_MEASURED_WITH, OWN_TREES)
                self._shared[row.drafter] = tuned.tree
            return self._shared[row.drafter]
        assert self._shape is not None, "neither of the two names is a shape"
        depth = min(self._shape.depth, deepest_tree(model_of(self._drafter(row.drafter))) or self._shape.depth)
        shape = self._shape._replace(depth=depth)
        return shape._replace(num_nodes=min(shape.num_nodes, 1 + shape.num_candidates))

    def _find_chain(self, row: Row) -> TreeShape:
        assert self.vllm is not None, f"{row.name} is left out without vLLM"
        if self._shape is None:
            depth = self.vllm.find_chain(row.name, probe_prompts(self.decoder))
        else:
            depth = self._shape.depth
        return TreeShape(depth, 1, 1 + depth)

    def _decoder(self, drafter: str, vocab: str, tree: TreeArgument) -> SpeculativeDecoder:
        """A tokenizer is what a tree is measured with; a measured row has none, so that no text is made."""
        pair = self.decoder
        return SpeculativeDecoder(
            pair.target,
            self._drafter(drafter),
            vocab,
            tree,
            pair.tokenizer if tree == OWN_TREES else None,
            pair.num_top,
            pair.capacity,
            pair.frequent_ids,
        )

    def _load_assistant(self) -> PreTrainedModel:
        if self._assistant is None:
            self._assistant = load_assistant(str(self.options[ASSISTANT]), self.decoder)
        return self._assistant

    def _drafter(self, name: str) -> Drafter:
        if name not in self._drafters:
            path = self.options[name]
            assert path is not None, f"rows with the drafter {name} are left out without it"
            self._drafters[name] = load_drafter(path, self.decoder.target, tokenizer=self.decoder.tokenizer)
        return self._drafters[name]


def engine_row(generate: Callable[..., GenerationResult]) -> Decode:
    """A row of our engine. The clock is around the call, as around the peers': what no stage counts is in other."""

    def decode(input_ids: Tensor, max_new_tokens: int) -> Decoded:
        began = time.perf_counter()
        result = generate(input_ids, max_new_tokens=max_new_tokens, ignore_eos=True)
        seconds, stats = time.perf_counter() - began, result.stats
        ttft, spent = stats.seconds["prefill"], stats.seconds
        stages = {stage: spent[stage] for stage in ("draft", "verify", "vocabulary")}
        stages["other"] = seconds - ttft - sum(stages.values())
        return Decoded(
            result.token_ids,
            seconds,
            ttft,
            1,
            stats.steps,
            stats.step_tokens,
            None if stats.drafter is None else stats.active_rows,
            None if spent["step"] else stages,  # a step that is one CUDA graph has no stages
        )

    return decode
