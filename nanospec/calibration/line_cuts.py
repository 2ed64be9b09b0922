"""Where plain text may be cut without a change of its ids: that is the tokenizer's matter, so it is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

# Ends of a piece whose only blank is the line break, and others; beginnings of the next one, which are never blank.
PLAIN_ENDS = ("a\n", "A\n", "1\n", ".\n", ");\n", "\u00e9\n", "\u6587\n", "\n")
BLANK_ENDS = ("a\n\n", ".\n\n", "1\n\n\n", "a \n", "a\t\n", "a\r\n", ";\r\n\r\n", "a\n \n", "a\n  \n\n", "\n\n")
BEGINNINGS = ("b", "B", "The", "2", "-", "(", "#", "'s", "\u00e9", "\u6587", "\U0001f600")


class LineCuts(NamedTuple):
    """Whether text may be cut where a line begins without a blank: after a line break that follows text, and after one
    that follows another blank (an empty line, a space, a carriage return)."""

    after_text: bool
    after_blank: bool

    def may_cut_after(self, piece: str) -> bool:
        """piece: ends with a line break."""
        return self.after_blank if piece[-2:-1].isspace() else self.after_text


NO_CUTS = LineCuts(False, False)


def find_line_cuts(ids_of: Callable[[str], Sequence[int]]) -> LineCuts:
    """Both kinds of places where `ids_of`, text to ids, gave two parts the ids of the whole, on examples of it.

    Byte-level BPE with GPT-2's pattern fails after blanks: what follows decides whether two line breaks are one token.
    Tokenizers that put a blank in front of every text (Llama-2, Mistral) fail everywhere.
    """

    def holds_after(ends: Sequence[str]) -> bool:
        return all(
            [*ids_of(end), *ids_of(beginning)] == [*ids_of(end + beginning)] for end in ends for beginning in BEGINNINGS
        )

    return LineCuts(holds_after(PLAIN_ENDS), holds_after(BLANK_ENDS))
