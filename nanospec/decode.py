"""The decoder: target, drafter, draft vocabulary and tree put together behind `generate` and `stream`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nanospec.autoregression import AutoregressiveLoop
from nanospec.batch.engine import BatchEngine
from nanospec.batch.generate import BatchRequest, generate_all
from nanospec.batch.tree import DEFAULT_MAX_BATCH, batch_tree
from nanospec.checkpoints.target import load_target
from nanospec.checkpoints.tokenizer import encode_prompt
from nanospec.compiled_drafter import refuse_uncompiled
from nanospec.decoder_options import (
    TreeArgument,
    as_tree_shape,
    check_options,
    checked_prefix,
    checked_temperature,
    eos_ids_of,
    resolve_cuda_graph,
    vocab_of_draft,
)
from nanospec.demo import DRAFT_DIRECTORIES, DRAFT_DIRECTORY, TARGET_DIRECTORY, VOCAB_SIZE
from nanospec.drafters.drafter import Drafter, HasOwnCache, deepest_tree
from nanospec.drafters.eagle3 import Eagle3Drafter
from nanospec.drafters.joined_drafter import join_prompt_lookup
from nanospec.drafters.prompt_lookup import PROMPT_LOOKUP, PromptLookupDrafter
from nanospec.graph_compiler import inner_backend
from nanospec.headless import HeadlessProbe
from nanospec.open_draft import FREQUENT_IDS, open_draft
from nanospec.prefix_cache import PrefixCache
from nanospec.request import Request, as_input_ids, as_sampling
from nanospec.result import GenerationResult, OutputCutter, StreamPiece
from nanospec.sampling import SamplingParams, require_int
from nanospec.speculation import SpeculativeLoop
from nanospec.static_tree import StaticTree
from nanospec.stats import GenerationStats, StageClock
from nanospec.step_graphs import CaptureResources, StepGraphs
from nanospec.target import Target
from nanospec.text_stream import TextStream, check_stop_strings
from nanospec.tree_growers import TreeGrowers, model_of
from nanospec.tree_shape import TreeShape, default_tree_shape
from nanospec.tree_tuning import tune_tree_shape
from nanospec.vocab.adaptive import policy_below
from nanospec.vocab.reduced import ReducedVocab
from nanospec.vocab.static_list import read_static_list
from nanospec.vocab_selector import VocabSelector, fewest_rows

DEFAULT_NUM_TOP, MAX_NUM_TOP = 16, 64
GREEDY_DRAFT_TEMPERATURE = 0.5  # docs/benchmarks_accept_length.md has its accept lengths, and those of 1
MAX_CAPTURED_STEPS = 4  # tree shapes and ways to sample whose graphs are kept


class SpeculativeDecoder:
    """Speculative decoding, one sequence at a time or many in a batch; lossless unless a request names a lossy
    acceptance. For one thread at a time: RuntimeError for a second one, also by another decoder over these modules.

    target, drafter   modules on one device and in one dtype
    vocab             "in-context", "full", "static:N", "static:FILE", "hybrid:N" (N frequent ids and in-context),
                      "hybrid:auto" (as many of them as pay for their rows), "routed:FILE" (clusters that a trained
                      router picks), "hybrid:N+routed:FILE:N" (rows that it adds), each also with "+prior"
                      (`SuccessorPrior`), or a `VocabSelector`, over the head that drafts: the drafter's own where it
                      has one. Prompt lookup alone scores nothing and reads none
    tree              TreeShape(depth, branching, num_nodes), None for the device's default, "auto" to measure, or a
                      StaticTree, whose nodes are fixed by rank
    num_top           target suggestions per position that enter an in-context vocabulary; None: 16 (NanoSpec: 3)
    capacity          most rows that an in-context vocabulary holds (K)
    frequent_ids      int64 [N], most frequent first: what "static:N" takes its ids from
    compile           True: drafts through torch.compile's backend "nanospec", the target through Inductor; the same
                      tokens. The first request compiles, or `warm_up`. "aot_eager" or "eager" stand in for Inductor.
                      Such a decoder, and one whose drafter reads other features than `target` delivers, has caches
                      of its own over the weights of `target` and `drafter`
    draft_temperature the drafter's logits are divided by it when a tree is grown; None: 0.5 for greedy requests, whose
                      target takes first choices more often than the drafter's probabilities say, else 1
    cuda_graph        whole decoding steps are replayed as CUDA graphs, captured as contexts grow; the same tokens.
                      None: on CUDA, if the drafter's passes have fixed shapes, the vocabulary is one of ours and
                      experts, where a target has them, are computed by kernels that can be captured

    Raises ValueError or TypeError naming the argument, what it must be and what it was; NotImplementedError for a
    drafter that cannot be compiled.
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter,
        vocab: str | VocabSelector = "in-context",
        tree: TreeArgument = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        num_top: int | None = None,
        capacity: int = 3072,
        frequent_ids: Tensor | None = None,
        compile: bool | str = False,
        cuda_graph: bool | None = None,
        draft_temperature: float | None = None,
    ) -> None:
        most = min(MAX_NUM_TOP, target.vocab_size)
        num_top = min(DEFAULT_NUM_TOP, most) if num_top is None else num_top
        require_int("num_top", num_top)
        require_int("capacity", capacity)
        if not 1 <= num_top <= most:
            raise ValueError(f"num_top must be in [1, {most}], got {num_top}")
        if drafter.dtype not in (None, target.dtype):
            raise ValueError(f"drafter must have the target's dtype {target.dtype}, got {drafter.dtype}")
        self.compile, compiled_by = compile, inner_backend(compile)
        model = model_of(drafter)
        feature_layers = model.feature_layers if isinstance(model, Eagle3Drafter) else None
        if (target.compiled_by, target.feature_layers) != (compiled_by, feature_layers):  # with caches of its own
            target = Target(target.model, compiled_by, feature_layers)
            drafter = drafter.with_own_cache() if isinstance(drafter, HasOwnCache) else drafter
        self.target, self.drafter, self.tokenizer = target, drafter, tokenizer
        self.num_top, self.capacity, self.frequent_ids = num_top, min(capacity, target.vocab_size), frequent_ids
        self.vocab = vocab_of_draft(vocab, target, model, self.capacity, frequent_ids)
        if compiled_by is not None:
            refuse_uncompiled(drafter, self.vocab)
        self.draft_temperature = checked_temperature(draft_temperature)
        self._asked_cuda_graph = cuda_graph
        self.cuda_graph = resolve_cuda_graph(cuda_graph, target, drafter, self.vocab)
        self._step_graphs: OrderedDict[tuple[TreeShape, SamplingParams, float], StepGraphs] = OrderedDict()
        self._capture = CaptureResources.of(target.device) if self.cuda_graph else None
        self.eos_ids = eos_ids_of(target, tokenizer)
        self.last_stats: GenerationStats | None = None
        num_rows, max_depth = fewest_rows(self.vocab), deepest_tree(model)
        self.static_tree = tree if isinstance(tree, StaticTree) else None
        self._growers = TreeGrowers(drafter, self.vocab, compiled_by, self.static_tree, target.device)
        if self.static_tree is not None and compiled_by is not None:
            raise NotImplementedError(f"compile must be False with a StaticTree, got {compile!r}")
        if self.static_tree is not None and isinstance(drafter, PromptLookupDrafter):
            raise NotImplementedError("tree must not be a StaticTree with prompt lookup, which ranks no tokens")
        is_chosen = tree in (None, "auto")
        self.tree = default_tree_shape(target.device, num_rows, max_depth) if is_chosen else as_tree_shape(tree)
        if self.tree.branching > num_rows:
            raise ValueError(f"tree branching must be at most {num_rows}, the rows of the vocabulary, got {self.tree}")
        if max_depth is not None and self.tree.depth > max_depth:
            raise ValueError(f"tree depth must be at most {max_depth} for this {drafter.name} drafter, got {self.tree}")
        if tree == "auto":
            self.tree = target.ranks.agree_on(tune_tree_shape(self))

    @classmethod
    def from_pretrained(
        cls,
        target: str | Path | PreTrainedModel,
        draft: str | Path | PreTrainedModel | Drafter,
        *,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        feature_layers: Sequence[int] | None = None,
        lookup: bool = False,
        **options: Any,
    ) -> SpeculativeDecoder:
        """A decoder over paths, hub ids or loaded modules; the draft "prompt-lookup" needs no weights, "mtp" means the
        native MTP modules in the target's own checkpoint.

        dtype defaults to the checkpoint's, device to CUDA where there is one; both apply to what is loaded here, and so
        does feature_layers: the target's layers that an EAGLE-3 draft reads, where its config is wrong. lookup: prompt
        lookup's best chain joins the draft's trees (`JoinedDrafter`). Further options are those of the class. The
        target's tokenizer is used where its directory holds one, and "static:N" takes its ids from
        `frequent_ids.safetensors` where the draft's directory holds it. Raises TypeError for an unknown option.
        """
        check_options(cls, options)
        loaded, tokenizer = load_target(target, dtype=dtype, device=device)
        drafter, frequent_ids = open_draft(draft, loaded, feature_layers, tokenizer)
        if frequent_ids is not None:
            options.setdefault("frequent_ids", frequent_ids)
        if lookup:
            drafter = join_prompt_lookup(drafter, loaded.device)
        options.setdefault("tokenizer", tokenizer)
        return cls(loaded, drafter, **options)

    @classmethod
    def from_demo(cls, draft: str = "eagle", **options: Any) -> SpeculativeDecoder:
        """A decoder over the embedded target; options as in `from_pretrained`.

        draft: "eagle", "eagle3", "medusa", the embedded ones, or "prompt-lookup". Raises ValueError for another.
        """
        if draft not in (*DRAFT_DIRECTORIES, PROMPT_LOOKUP):
            names = ", ".join((*DRAFT_DIRECTORIES, PROMPT_LOOKUP))
            raise ValueError(f"draft of the embedded target must be one of {names}, got {draft!r}")
        if "frequent_ids" not in options:  # one list for all of them
            options["frequent_ids"] = read_static_list(DRAFT_DIRECTORY / FREQUENT_IDS, VOCAB_SIZE)
        return cls.from_pretrained(TARGET_DIRECTORY, DRAFT_DIRECTORIES.get(draft, draft), **options)

    def with_vocab(
        self, vocab: str | VocabSelector, *, num_top: int | None = None, capacity: int | None = None
    ) -> SpeculativeDecoder:
        """A decoder over the same modules and tree with another draft vocabulary; use one at a time.

        num_top, capacity: None: as here.
        """
        return type(self)(
            self.target,
            self.drafter,
            vocab,
            self.static_tree or self.tree,
            self.tokenizer,
            self.num_top if num_top is None else num_top,
            self.capacity if capacity is None else capacity,
            self.frequent_ids,
            self.compile,
            self._asked_cuda_graph,
            self.draft_temperature,
        )

    def warm_up(self) -> None:
        """Decode a few tokens, so that the first request does not wait for compilation or for memory."""
        loop, _ = self.speculate(torch.zeros(1, 2, dtype=torch.int64, device=self.target.device), self.tree, 16)
        for _ in islice(loop.steps(), 3):
            pass

    def encode(self, text: str) -> Tensor:
        """input_ids int64 [1, P] of a prompt, through the tokenizer's chat template where it has one."""
        tokenizer = self._require_tokenizer("encode")
        if not text:
            raise ValueError("prompt must not be empty, got ''")
        return as_input_ids(encode_prompt(tokenizer, text), self.target.device)

    def generate(
        self,
        input_ids: Tensor | Sequence[int],
        *,
        probe_headless: bool = False,
        prefix_cache: PrefixCache | None = None,
        **settings: Any,
    ) -> GenerationResult:
        """Decode speculatively.

        input_ids int [P] or [1, P]; settings: max_new_tokens=256, temperature=0.0 (greedy), top_k=0, top_p=1.0,
        min_p=0.0, repetition_penalty=1.0, seed=None, stop_strings=(), ignore_eos=False. `probe_headless` also times
        every draft with its head deleted. With a `prefix_cache`, what the request before it left there is not read
        again; NotImplementedError with a tensor-parallel target.

        Raises TypeError for an unknown setting, and as `Request.check` and `SamplingParams`.

        LOSSY by name only: acceptance="typical", with posterior_threshold=0.09 and posterior_alpha=0.3, keeps drafted
        tokens that the target finds likely enough; the result then says `lossless` False.
        """
        request = self._request(input_ids, **settings)
        loop, stats = self._speculate(request, self.tree, checked_prefix(prefix_cache, self.target))
        if probe_headless:  # stage by stage
            loop.fixed_steps = None
            loop.probe = HeadlessProbe(self._growers.grower(self.tree, headless=True), stats, self.target.device)
        return self._collect(OutputCutter(request, self._text_stream(request)), loop.steps(), stats)

    def stream(
        self, input_ids: Tensor | Sequence[int], *, prefix_cache: PrefixCache | None = None, **settings: Any
    ) -> Iterator[StreamPiece]:
        """Like `generate`, one piece per target pass; `last_stats` holds the figures afterwards."""
        request = self._request(input_ids, **settings)
        return self._stream(request, checked_prefix(prefix_cache, self.target))

    def generate_many(
        self,
        requests: Iterable[BatchRequest],
        max_batch: int = DEFAULT_MAX_BATCH,
        tree: TreeArgument = None,
        **settings: Any,
    ) -> Iterator[tuple[int, GenerationResult]]:
        """Decode many requests, up to `max_batch` of them together: (place among the requests, result), as they finish.

        requests  token ids, or mappings of "input_ids" and what `generate` takes beside them; read one by one, whenever
                  a row is free. settings hold for requests without one of their own
        tree      as of the class; None: a smaller one than for single requests, see `default_batch_tree`

        Raises what `batch_engine` raises, at once; while iterating, what `generate` raises, at the request in question:
        what else is running is dropped then.
        """
        return generate_all(self.batch_engine(max_batch, tree), requests, settings)

    def batch_engine(self, max_batch: int = DEFAULT_MAX_BATCH, tree: TreeArgument = None) -> BatchEngine:
        """What `generate_many` runs on, to be driven step by step: `submit`, `step`, `cancel`.

        Raises TypeError or ValueError for a max_batch below 1 or a tree that does not fit, and as `BatchEngine`.
        """

        def engine(shape: TreeShape | StaticTree) -> BatchEngine:
            return BatchEngine(self, max_batch, shape, self._request, self._temperature_for)

        return engine(batch_tree(self, max_batch, tree, engine))

    def generate_autoregressive(
        self, input_ids: Tensor | Sequence[int], *, return_candidates: bool = False, **settings: Any
    ) -> GenerationResult:
        """Plain decoding by the same target: the output that `generate` must equal. Settings as in `generate`.

        `return_candidates` keeps the eight best ids of every position with their logits.
        """
        request = self._request(input_ids, **settings)
        stats = replace(self._new_stats(), tree=None, vocab="autoregressive", drafter=None)
        loop = AutoregressiveLoop(self.target, request, stats, self._clock(stats), return_candidates)
        result = self._collect(OutputCutter(request, self._text_stream(request)), loop.steps(), stats)
        return replace(result, candidates=loop.candidates)

    def _stream(self, request: Request, prefix_cache: PrefixCache | None) -> Iterator[StreamPiece]:
        loop, stats = self._speculate(request, self.tree, prefix_cache)
        cutter = OutputCutter(request, self._text_stream(request))
        for piece in cutter.pieces(loop.steps()):
            self._finish(stats, cutter)
            yield piece

    def _collect(self, cutter: OutputCutter, steps: Iterator[list[int]], stats: GenerationStats) -> GenerationResult:
        for _ in cutter.pieces(steps):
            pass
        self._finish(stats, cutter)
        assert cutter.finish_reason is not None, "a loop ended before its request did"
        return GenerationResult(cutter.token_ids, cutter.text, cutter.finish_reason, stats)

    def _finish(self, stats: GenerationStats, cutter: OutputCutter) -> None:
        stats.new_tokens = len(cutter.token_ids)
        vocab = policy_below(self.vocab)
        if stats.drafter is not None and isinstance(vocab, ReducedVocab):
            stats.observed_ids, stats.unsayable_ids = vocab.count_unsayable()
        self.last_stats = stats

    def speculate(
        self, input_ids: Tensor, tree: TreeShape, max_new_tokens: int, **sampling: Any
    ) -> tuple[SpeculativeLoop, GenerationStats]:
        """The bare loop over a prompt with a tree of any shape, and its figures; ends with its consumer.

        sampling as in `generate`: greedy without any.
        """
        return self._speculate(self._request(input_ids, max_new_tokens, ignore_eos=True, **sampling), tree)

    def _speculate(
        self, request: Request, tree: TreeShape, prefix_cache: PrefixCache | None = None
    ) -> tuple[SpeculativeLoop, GenerationStats]:
        stats = replace(self._new_stats(), tree=tree, lossless=request.sampling.is_lossless)
        tree_drafter = self._growers.grower(tree, self._temperature_for(request))
        loop = SpeculativeLoop(self.target, tree_drafter, self.vocab, self.num_top, request, stats, self._clock(stats))
        loop.prefix = prefix_cache
        if self.cuda_graph:
            loop.fixed_steps = self._graphs_of(loop)
        return loop, stats

    def _graphs_of(self, loop: SpeculativeLoop) -> StepGraphs:
        """The captured steps of the loop's tree and way to sample; those of the last few are kept."""
        assert self._capture is not None, "only called with CUDA graphs"
        sampling, kept = replace(loop.request.sampling, seed=None), self._step_graphs
        key = loop.tree_drafter.shape, sampling, self._temperature_for(loop.request)
        if key not in kept:
            while len(kept) >= MAX_CAPTURED_STEPS:
                kept.popitem(last=False)
            kept[key] = StepGraphs(loop.decoding_step(), self._capture)
        kept.move_to_end(key)
        return kept[key]

    def _temperature_for(self, request: Request) -> float:
        if self.draft_temperature is not None:
            return self.draft_temperature
        return GREEDY_DRAFT_TEMPERATURE if request.sampling.is_greedy else 1.0

    def _request(
        self,
        input_ids: Tensor | Sequence[int],
        max_new_tokens: int = 256,
        stop_strings: Sequence[str] = (),
        ignore_eos: bool = False,
        **sampling: Any,
    ) -> Request:
        if stop_strings:
            self._require_tokenizer("stop_strings")
        ids = as_input_ids(input_ids, self.target.device)
        eos_ids = frozenset() if ignore_eos else self.eos_ids
        strings = (stop_strings,) if isinstance(stop_strings, str) else stop_strings
        check_stop_strings(strings)
        request = Request(ids, max_new_tokens, as_sampling(sampling), tuple(strings), eos_ids)
        request.check(self.target.vocab_size, self.target.context_window)
        room = self.target.context_window - ids.shape[1]
        return replace(request, max_new_tokens=min(max_new_tokens, room))

    def _new_stats(self) -> GenerationStats:
        target = self.target
        return GenerationStats(
            self.vocab.name, self.drafter.name, str(target.device), str(target.dtype).removeprefix("torch."), self.tree
        )

    def _clock(self, stats: GenerationStats) -> StageClock:
        return StageClock(stats, self.target.device)

    def _text_stream(self, request: Request) -> TextStream | None:
        return None if self.tokenizer is None else TextStream(self.tokenizer, request.stop_strings)

    def _require_tokenizer(self, what: str) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise ValueError(f"{what} needs a tokenizer, got none: pass tokenizer= or use a target directory with one")
        return self.tokenizer
