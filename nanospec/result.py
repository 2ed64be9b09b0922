"""What a generation returns, and the rules that end it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from nanospec.request import Request
from nanospec.stats import GenerationStats
from nanospec.text_stream import TextStream


class StreamPiece(NamedTuple):
    """New token ids and the text that became certain with them ("" without a tokenizer or within a character)."""

    text: str
    token_ids: list[int]


class Candidates(NamedTuple):
    """The best ids at one output position and their logits, best first."""

    ids: list[int]
    logits: list[float]


@dataclass(frozen=True)
class GenerationResult:
    """token_ids include the EOS id that ended the output, if one did; text ends before a stop string.

    finish_reason: "eos", "length" or "stop_string". candidates: per generated position, where they were asked for.
    """

    token_ids: list[int]
    text: str | None
    finish_reason: str
    stats: GenerationStats
    candidates: list[Candidates] | None = None

    @property
    def lossless(self) -> bool:
        """Whether the tokens are the target's own; False with typical acceptance."""
        return self.stats.lossless


class OutputCutter:
    """Turns the token ids of whole steps into pieces that end exactly where the request ends."""

    def __init__(self, request: Request, text_stream: TextStream | None) -> None:
        self.request, self.text_stream = request, text_stream
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None

    def pieces(self, steps: Iterable[list[int]]) -> Iterator[StreamPiece]:
        for emitted in steps:
            yield self.piece(emitted)
            if self.finish_reason is not None:
                return

    def piece(self, emitted: list[int]) -> StreamPiece:
        """What a step adds to the output; `finish_reason` says whether that was the last."""
        kept = self._cut(emitted)
        text = self._push(kept)
        if self.finish_reason is not None:
            text += self._flush()
        return StreamPiece(text, kept)

    @property
    def text(self) -> str | None:
        return None if self.text_stream is None else self.text_stream.text

    def _cut(self, emitted: list[int]) -> list[int]:
        kept = emitted[: self.request.max_new_tokens - len(self.token_ids)]
        for index, token_id in enumerate(kept):
            if token_id in self.request.eos_ids:
                kept, self.finish_reason = kept[: index + 1], "eos"
                break
        if self.finish_reason is None and len(self.token_ids) + len(kept) == self.request.max_new_tokens:
            self.finish_reason = "length"
        self.token_ids += kept
        return kept

    def _push(self, kept: list[int]) -> str:
        if self.text_stream is None:
            return ""
        text = self.text_stream.push(kept)
        if self.text_stream.stopped:
            assert self.text_stream.stop_index is not None, "a stopped stream knows where"
            surplus = len(self.token_ids) - self.text_stream.stop_index
            if surplus:
                del self.token_ids[-surplus:], kept[-surplus:]
            self.finish_reason = "stop_string"
        return text

    def _flush(self) -> str:
        return "" if self.text_stream is None else self.text_stream.finish()
