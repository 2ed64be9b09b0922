"""Decodes one request and keeps what each step drafted, from which ids, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import Tensor

from nanospec.kv_cache import CachePlace
from nanospec.records import DraftTree, DraftVocab, Verdict
from nanospec.request import as_input_ids
from nanospec.result import OutputCutter
from nanospec.text_stream import TextStream
from nanospec.tree_drafter import TreeGrower
from nanospec.vocab.none import NoVocab

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from nanospec.decode import SpeculativeDecoder

Origin = Literal["prompt", "drafted", "bonus"]


class DraftedNode(NamedTuple):
    """A node of a draft tree: parent counts in the step's list (the root, node 0, is its own), score is the drafter's
    cumulative log-probability with its prior."""

    token_id: int
    text: str
    parent: int
    depth: int
    score: float
    accepted: bool


class ExplainedStep(NamedTuple):
    """One target pass: ids in the draft vocabulary (in all levels together, where each has its own), and the tree."""

    num_active: int
    nodes: list[DraftedNode]


class ExplainedToken(NamedTuple):
    """A token of the output.

    text      what became certain with it, "" within a character
    origin    "prompt": of the prompt pass; "drafted": accepted at `depth` of the tree; "bonus": the target's own after
              the accepted path
    step      that it came from; -1: the prompt pass
    drawable  whether the draft vocabulary of that step held it, or the drafter has none; a bonus token that it lacks is
              a miss
    """

    token_id: int
    text: str
    origin: Origin
    depth: int
    step: int
    drawable: bool

    @property
    def is_miss(self) -> bool:
        return self.origin == "bonus" and not self.drawable


@dataclass(frozen=True)
class Explanation:
    """A generation with where its tokens came from. prompt: as the tokenizer decodes it; has_vocab: False for a drafter
    that scores no ids, which then cannot lack one."""

    prompt: str
    tokens: list[ExplainedToken]
    steps: list[ExplainedStep]
    finish_reason: str
    vocab: str
    drafter: str
    has_vocab: bool = True

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)

    @property
    def num_misses(self) -> int:
        return sum(token.is_miss for token in self.tokens)

    @property
    def mean_accept_length(self) -> float:
        """Tokens per target pass, bonus tokens included; 0.0 if the prompt pass was all there was."""
        return (len(self.tokens) - 1) / len(self.steps) if self.steps else 0.0

    @property
    def mean_active(self) -> float:
        return sum(step.num_active for step in self.steps) / len(self.steps) if self.steps else 0.0


def explain(
    decoder: SpeculativeDecoder, input_ids: Tensor | Sequence[int], max_new_tokens: int = 128, **sampling: Any
) -> Explanation:
    """Decode a request, step by step and uncaptured, with the tokens that `decoder.generate` would give.

    input_ids int [P] or [1, P]; sampling: as in `generate`. Raises ValueError for a decoder without a tokenizer, and as
    `generate`.
    """
    tokenizer = decoder.tokenizer
    if tokenizer is None:
        raise ValueError("decoder must have a tokenizer to be explained, got none")
    prompt_ids = as_input_ids(input_ids, decoder.target.device)
    loop, _ = decoder.speculate(prompt_ids, decoder.tree, max_new_tokens, **sampling)
    recorder = _Recorder(loop.tree_drafter, tokenizer)
    loop.tree_drafter, loop.on_verdict, loop.fixed_steps = recorder, recorder.note, None
    request = replace(loop.request, eos_ids=decoder.eos_ids)
    cutter, texts = OutputCutter(request, None), TextStream(tokenizer)
    tokens: list[ExplainedToken] = []
    has_vocab = not isinstance(decoder.vocab, NoVocab)
    for number, piece in enumerate(cutter.pieces(loop.steps()), start=-1):
        places = _places(recorder.steps[number] if number >= 0 else None)
        for token_id, (origin, depth) in zip(piece.token_ids, places, strict=False):
            drawable = number >= 0 and (not has_vocab or token_id in recorder.active_ids)
            tokens.append(ExplainedToken(token_id, texts.push([token_id]), origin, depth, number, drawable))
    if tokens and (rest := texts.finish()):
        tokens[-1] = tokens[-1]._replace(text=tokens[-1].text + rest)
    assert cutter.finish_reason is not None, "a loop ended before its request did"
    prompt = tokenizer.decode(request.input_ids[0].tolist())
    names = decoder.vocab.name, decoder.drafter.name
    return Explanation(prompt, tokens, recorder.steps, cutter.finish_reason, *names, has_vocab)


def _places(step: ExplainedStep | None) -> list[tuple[Origin, int]]:
    """(origin, depth) of the tokens of a step in their order; None: of the prompt pass."""
    if step is None:
        return [("prompt", 0)]
    length = sum(node.accepted for node in step.nodes)  # the root included
    return [*(("drafted", depth) for depth in range(1, length)), ("bonus", length)]


class _Recorder:
    """Grows the trees that another grower would, and keeps them with the ids that they were drawn from."""

    def __init__(self, inner: TreeGrower, tokenizer: PreTrainedTokenizerBase) -> None:
        self._inner, self._tokenizer = inner, tokenizer
        self.drafter, self.shape = inner.drafter, inner.shape
        self.steps: list[ExplainedStep] = []
        self.active_ids: set[int] = set()

    def draft(
        self, root_id: Tensor, root_state: Tensor, vocab: DraftVocab, place: CachePlace | None = None
    ) -> DraftTree:
        self.active_ids = set()
        at_level = vocab.at_level
        if at_level is None:
            self._see(vocab)
        else:
            vocab = vocab._replace(at_level=lambda states, level: self._see(at_level(states, level)))
        return self._inner.draft(root_id, root_state, vocab, place)

    def note(self, tree: DraftTree, verdict: Verdict, num_accepted: int) -> None:
        accepted = set(verdict.accepted_pos[0, :num_accepted].tolist())
        columns = (tree.token_ids, tree.parent_pos, tree.depth, tree.score)
        rows = list(zip(*(column[0].tolist() for column in columns), strict=True))
        used = [pos for pos, (token_id, *_) in enumerate(rows) if token_id >= 0]
        place = {pos: number for number, pos in enumerate(used)}
        nodes = []
        for pos in used:
            token_id, parent, depth, score = rows[pos]
            text = self._tokenizer.decode([token_id])
            nodes.append(DraftedNode(token_id, text, place[parent], depth, score, pos in accepted))
        self.steps.append(ExplainedStep(len(self.active_ids), nodes))

    def _see(self, vocab: DraftVocab) -> DraftVocab:
        count = vocab.draft_ids.shape[1] if vocab.all_active else int(vocab.count[0])
        self.active_ids.update(vocab.draft_ids[0, :count].tolist())
        return vocab
