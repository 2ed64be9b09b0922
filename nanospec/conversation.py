"""A chat with one decoder: messages as a chat template takes them, answers that stream, only what is new read."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from nanospec.checkpoints.tokenizer import encode_rendered, render_messages
from nanospec.prefix_cache import PrefixCache
from nanospec.result import StreamPiece

if TYPE_CHECKING:
    from nanospec.decode import SpeculativeDecoder

Message = dict[str, str]  # "role": "system", "user" or "assistant"; "content"
Answer = Generator[StreamPiece, None, None]


class FullContextError(ValueError):
    """A conversation leaves no room for an answer in the target's context window."""


class _Read(NamedTuple):
    """Text that a turn began or ended with, and the ids that were read for it."""

    text: str
    ids: list[int]


class Conversation:
    """Messages of a user and their answers by a decoder, which must have a tokenizer.

    system    an instruction before all of them, where the tokenizer's chat template knows that role

    messages  so far, in order. They end with an answer: what was said of it where it was left early

    An answer stays in the text as the tokens that the target said, as long as the chat template renders it unchanged;
    whatever is rendered in another way than before is read again (see `PrefixCache`). Without a chat template every
    message is followed by a blank line.

    Raises ValueError for a decoder without a tokenizer.
    """

    def __init__(self, decoder: SpeculativeDecoder, system: str | None = None) -> None:
        if decoder.tokenizer is None:
            raise ValueError("decoder must have a tokenizer for a conversation, got none")
        self.decoder, self._tokenizer = decoder, decoder.tokenizer
        self._beginning: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self.messages: list[Message] = list(self._beginning)
        self._prefix_cache = PrefixCache()
        self._turns: list[list[_Read]] = []  # what had been read when each answer ended
        self._answer: Answer | None = None

    @property
    def num_tokens(self) -> int:
        """Of the text so far, the last answer included; the target's context window bounds it."""
        return len(self._turns[-1][-1].ids) if self._turns else 0

    def ask(self, text: str, **settings: Any) -> Answer:
        """The answer to `text`, piece by piece; settings as of `SpeculativeDecoder.generate`.

        When the iterator ends, is closed or another answer begins, `messages` has what was said. Where nothing was,
        whatever the reason, it stays as it is. Raises FullContextError, a ValueError, if there is no room for an
        answer, ValueError for an empty text or messages that the chat template refuses, and as `generate` with a
        `PrefixCache`.
        """
        if not text:
            raise ValueError("text must not be empty, got ''")
        self._leave_answer()
        return self._begin_answer([*self.messages, {"role": "user", "content": text}], len(self._turns), settings)

    def regenerate(self, **settings: Any) -> Answer:
        """Another answer in place of the last one. Raises ValueError if there is none, and as `ask`."""
        self._leave_answer()
        self._check_answered()
        return self._begin_answer(self.messages[:-1], max(0, len(self._turns) - 1), settings)

    def undo(self) -> None:
        """Take back the last answer and what was asked. Raises ValueError if there is none."""
        self._leave_answer()
        self._check_answered()
        self.messages, self._turns = self.messages[:-2], self._turns[:-1]

    def reset(self) -> None:
        """Begin anew, after the system message."""
        self._leave_answer()
        self.messages, self._turns = list(self._beginning), []
        self._prefix_cache.clear()

    def _check_answered(self) -> None:
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise ValueError(f"messages must end with an answer, got {len(self.messages)} of them without one")

    def _leave_answer(self) -> None:
        if self._answer is not None:
            self._answer.close()

    def _begin_answer(self, messages: list[Message], num_turns: int, settings: dict[str, Any]) -> Answer:
        """The answer to `messages`, after `num_turns` earlier ones."""
        text = render_messages(self._tokenizer, messages)
        reads = [read for read in (self._turns[-1] if self._turns else []) if text.startswith(read.text)]
        asked = _Read(text, self._encode(text, reads))
        window = self.decoder.target.context_window
        if len(asked.ids) >= window:
            raise FullContextError(
                f"conversation must be shorter than the context window of {window} tokens, got {len(asked.ids)}: "
                "undo takes back its last turn, reset begins anew"
            )
        pieces = self.decoder.stream(asked.ids, prefix_cache=self._prefix_cache, **settings)
        reads = [*(read for read in reads if read.text != text), asked]
        self._answer = self._take(messages, self._turns[:num_turns], reads, pieces)
        return self._answer

    def _encode(self, text: str, reads: list[_Read]) -> list[int]:
        """Ids of a text: those read before for the longest of its beginnings with which the whole is the same text."""
        plain = encode_rendered(self._tokenizer, text)
        decoded = self._decode(plain) if reads else ""
        for read in sorted(reads, key=lambda read: len(read.text), reverse=True):
            rest = text[len(read.text) :]
            ids = [*read.ids, *(self._tokenizer(rest, add_special_tokens=False)["input_ids"] if rest else [])]
            if self._decode(ids) == decoded:
                return ids
        return plain

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    def _take(
        self,
        messages: list[Message],
        turns: list[list[_Read]],
        reads: list[_Read],
        pieces: Iterator[StreamPiece],
    ) -> Answer:
        said: list[StreamPiece] = []
        try:
            for piece in pieces:
                said.append(piece)
                yield piece
        finally:
            if said:
                self._turns = [*turns, [*reads, *self._answered(reads[-1], said)]]
                self.messages = [*messages, {"role": "assistant", "content": "".join(piece.text for piece in said)}]

    def _answered(self, asked: _Read, said: list[StreamPiece]) -> list[_Read]:
        """The text with the answer, before and after the token that ended it."""
        text = asked.text + "".join(piece.text for piece in said)
        said_ids = [token_id for piece in said for token_id in piece.token_ids]
        ids = [*asked.ids, *said_ids]
        if not said_ids or said_ids[-1] not in self.decoder.eos_ids:
            return [_Read(text, ids)]
        return [_Read(text, ids[:-1]), _Read(text + self._decode(ids[-1:]), ids)]
