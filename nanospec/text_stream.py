"""Token ids in, text out as soon as it is certain: no half characters, nothing that may still become a stop string."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol

REPLACEMENT = "\ufffd"
# A character has at most four bytes, so bytes that are none after this many tokens never will be.
MAX_PENDING_TOKENS = 16
MAX_OPEN_BYTES = 3


class Decodes(Protocol):
    """All that is asked of a tokenizer."""

    def decode(self, token_ids: list[int], /, *, skip_special_tokens: bool) -> Any: ...


def check_stop_strings(stop_strings: Sequence[str]) -> None:
    """TypeError unless they are a sequence of strings, ValueError if one of them is empty."""
    if (
        isinstance(stop_strings, str)
        or not isinstance(stop_strings, Collection)
        or not all(isinstance(stop, str) for stop in stop_strings)
    ):
        raise TypeError(f"stop_strings must be a sequence of strings, got {stop_strings!r}")
    if "" in stop_strings:
        raise ValueError(f"stop_strings must not hold an empty string, got {list(stop_strings)!r}")


class TextStream:
    """Decodes a growing list of tokens; its pieces, joined, are the text, cut before the first stop string.

    The first token that completes a stop string ends the text; if it completes several, the one that starts first
    counts. A window of recent tokens is decoded and compared with its decoded beginning, so that tokenizers which join
    bytes or add spaces between tokens come out right, at a cost that does not grow with the text.

    tokenizer needs `decode(ids, skip_special_tokens=...)`, as in transformers.
    Raises TypeError if stop_strings is not a sequence of strings, ValueError if one of them is empty.
    """

    def __init__(self, tokenizer: Decodes, stop_strings: Sequence[str] = (), skip_special_tokens: bool = True) -> None:
        check_stop_strings(stop_strings)
        self.stop_index: int | None = None
        self._tokenizer = tokenizer
        self._stop_strings = tuple(stop_strings)
        self._skip_special_tokens = skip_special_tokens
        self._num_tokens = 0
        # The first `_num_context` tokens of the window are done with and kept for what they do to the decoding of the
        # others; alone they decode to `_context_length` characters. `_num_given` of the window's have been passed on.
        self._window: list[int] = []
        self._num_context = 0
        self._context_length = 0
        self._num_given = 0
        self._held = ""  # certain text that may be the beginning of a stop string
        self._pieces: list[str] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop string was completed; `stop_index` then counts the tokens up to and including that one."""
        return self.stop_index is not None

    @property
    def text(self) -> str:
        """Everything given out so far."""
        return "".join(self._pieces)

    def push(self, token_ids: list[int]) -> str:
        """The text that these tokens make certain; once stopped, tokens are ignored."""
        # One token at a time only where somebody asks which one stopped.
        chunks = [[token_id] for token_id in token_ids] if self._stop_strings else [token_ids]
        return "".join(self._push_chunk(list(chunk)) for chunk in chunks if chunk)

    def finish(self) -> str:
        """Everything that was held back: no more tokens will come."""
        if self.stopped:
            return ""
        piece = self._cut_at_stop(self._pass_on(self._decode(self._window)))
        if self.stopped:
            return piece
        return piece + self._give_held(len(self._held))

    def _push_chunk(self, token_ids: list[int]) -> str:
        if self.stopped:
            return ""
        self._num_tokens += len(token_ids)
        self._window += token_ids
        return self._cut_at_stop(self._take_certain())

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens) if token_ids else ""

    def _take_certain(self) -> str:
        """New characters of the window that later tokens cannot change; moves the window on where a character ends."""
        text = self._decode(self._window)
        certain = text.rstrip(REPLACEMENT)
        piece = self._pass_on(certain)
        if len(certain) == len(text):
            if len(text) > self._context_length:
                self._move_window(len(self._window), len(text))
        elif len(self._window) - self._num_context > MAX_PENDING_TOKENS:
            cut = self._whole_characters(text)
            settled = self._decode(self._window[:cut])
            piece += self._pass_on(settled)
            self._move_window(cut, len(settled))
        return piece

    def _pass_on(self, certain: str) -> str:
        piece = certain[self._num_given :]
        self._num_given += len(piece)
        return piece

    def _move_window(self, cut: int, num_decoded: int) -> None:
        """The tokens up to `cut`, so far `num_decoded` characters with the old context, become the new context."""
        num_ahead = self._num_given - num_decoded
        self._window = self._window[self._num_context :]
        self._num_context = cut - self._num_context
        self._context_length = len(self._decode(self._window[: self._num_context]))
        self._num_given = self._context_length + num_ahead

    def _whole_characters(self, text: str) -> int:
        """How many tokens of the window are whole characters although its text ends in bytes that are none yet."""
        end = len(self._window)
        cuts = range(max(end - MAX_OPEN_BYTES, self._num_context + 1), end)
        return next((cut for cut in cuts if text.startswith(self._decode(self._window[:cut]))), end)

    def _cut_at_stop(self, new_text: str) -> str:
        """What can be given out of the held text and `new_text`; notes a completed stop string."""
        self._held += new_text
        starts = [start for stop in self._stop_strings if (start := self._held.find(stop)) >= 0]
        if starts:
            self.stop_index = self._num_tokens
            return self._give_held(min(starts))
        return self._give_held(len(self._held) - self._num_open())

    def _give_held(self, num_characters: int) -> str:
        piece, self._held = self._held[:num_characters], self._held[num_characters:]
        self._pieces.append(piece)
        return piece

    def _num_open(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self._stop_strings), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop_strings):
                return length
        return 0
