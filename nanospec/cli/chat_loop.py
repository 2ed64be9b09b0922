"""What a chat does with a line: an answer, or a command that begins with a slash."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from nanospec.cli.answer_view import LiveView, PlainView
from nanospec.cli.errors import is_told, one_line

if TYPE_CHECKING:
    from nanospec.conversation import Answer, Conversation
    from nanospec.stats import GenerationStats

COMMAND, CONTINUED = "/", "\\"


class ChatLoop:
    """Turns of a conversation, from lines to answers.

    settings        of every answer, as `SpeculativeDecoder.generate` takes them; a seed is that of the first one, the
                    next has the next
    keeps_going     what is wrong with a turn is said and the chat goes on; otherwise it is raised
    """

    def __init__(
        self,
        conversation: Conversation,
        settings: dict[str, Any],
        view: PlainView | LiveView,
        keeps_going: bool,
    ) -> None:
        self.conversation, self.settings, self.view, self.keeps_going = conversation, settings, view, keeps_going
        self.answered: list[GenerationStats] = []
        self._commands: dict[str, tuple[str, Callable[[], bool]]] = {
            "/help": ("these lines", self._help),
            "/regen": ("another answer in place of the last one", self._regenerate),
            "/undo": ("take back the last question and its answer", self._undo),
            "/reset": ("begin anew", self._reset),
            "/stats": ("figures of the chat so far", self._stats),
            "/exit": ("leave, as Ctrl-D does", lambda: False),
        }

    def run(self, lines: Iterable[str | None]) -> None:
        """Take lines, as `joined_lines` does, until they end or one of them is /exit."""
        for message in joined_lines(lines):
            if message.strip() and not self._take(message):
                return

    def _take(self, message: str) -> bool:
        """Whether the chat goes on after this message."""
        try:
            if not message.startswith(COMMAND):
                return self._answer(lambda settings: self.conversation.ask(message, **settings))
            name = message.strip()
            if name not in self._commands:
                raise ValueError(f"a command must be one of {', '.join(self._commands)}, got {name!r}")
            return self._commands[name][1]()
        except (ValueError, TypeError, MemoryError, RuntimeError, KeyboardInterrupt) as error:
            is_stopped = isinstance(error, KeyboardInterrupt)
            if not self.keeps_going or not (is_stopped or is_told(error)):
                raise
            self.view.say("stopped: what was said stays" if is_stopped else f"error: {one_line(error)}")
            return True

    def _answer(self, begin: Callable[[dict[str, Any]], Answer]) -> bool:
        decoder, settings = self.conversation.decoder, dict(self.settings)
        if settings.get("seed") is not None:
            settings["seed"] += len(self.answered)
        pieces = begin(settings)
        decoder.last_stats = None
        try:
            with self.view.answering() as show:
                for piece in pieces:
                    assert decoder.last_stats is not None, "a piece comes with figures"
                    show(piece.text, decoder.last_stats)
        finally:
            pieces.close()  # what was said enters the history
            if decoder.last_stats is not None:
                self.answered.append(decoder.last_stats)
        window = decoder.target.context_window
        if self.conversation.num_tokens >= window:
            self.view.say(
                f"the context window of {window:,} tokens is full: /undo takes back the last turn, /reset begins anew"
            )
        return True

    def _regenerate(self) -> bool:
        return self._answer(lambda settings: self.conversation.regenerate(**settings))

    def _undo(self) -> bool:
        self.conversation.undo()
        self.view.say(f"{len(self.conversation.messages)} messages are left")
        return True

    def _reset(self) -> bool:
        self.conversation.reset()
        self.view.say("a new conversation")
        return True

    def _help(self) -> bool:
        for name, (what, _) in self._commands.items():
            self.view.say(f"{name:8}{what}")
        self.view.say(
            "Ctrl-C stops an answer. A line that ends in \\ goes on in the next; one that begins with a space"
        )
        self.view.say("and a slash is no command.")
        return True

    def _stats(self) -> bool:
        answered, target = self.answered, self.conversation.decoder.target
        num_steps = max(1, sum(stats.steps for stats in answered))
        self.view.say(
            f"{len(answered)} answers, {sum(stats.new_tokens for stats in answered):,} tokens, "
            f"{sum(stats.step_tokens for stats in answered) / num_steps:.2f} per pass, "
            f"{sum(stats.active_rows for stats in answered) / num_steps:,.0f} rows, "
            f"reused {sum(stats.cached_tokens for stats in answered):,} of "
            f"{sum(stats.prompt_tokens for stats in answered):,}; "
            f"the context window holds {self.conversation.num_tokens:,} of {target.context_window:,} tokens"
        )
        return True


def joined_lines(lines: Iterable[str | None]) -> Iterator[str]:
    """Messages: a line that ends in a backslash is joined with the next. None drops the message begun.

    Example: "a\\", "b", "c\\", None, "d" give "a\\nb", "d".
    """
    held: list[str] = []
    for line in lines:
        if line is None:
            held.clear()
        elif line.endswith(CONTINUED):
            held.append(line.removesuffix(CONTINUED))
        else:
            yield "\n".join([*held, line])
            held.clear()
    if held:
        yield "\n".join(held)
